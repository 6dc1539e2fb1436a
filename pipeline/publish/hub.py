"""The target `hf:org/name`: GGUF files and a model card in a repository of the Hugging Face Hub, by one commit."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import AccessError, PipelineError, UsageError
from pipeline.publish import _hub_files
from pipeline.publish._body import changed
from pipeline.publish._card import MARKER, render_card
from pipeline.publish._release import Published, Release, ReleaseEntry
from pipeline.publish._staged import StagedTarget
from pipeline.store import Name
from pipeline.store.blobs import hash_bytes
from pipeline.types import Blob, Check, Log

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PREFIX = "hf:"
_PRIVATE = "+private"
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_LOGIN = "log in with a token that may write: hf auth login (or set HF_TOKEN)"
_MESSAGE = "GGUF files by gguf-pipeline"

Tree = Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class _State:
    """A repository now: its commit (None if it is not there), and digest or git id and size of each file."""

    commit: str | None
    tree: Tree


class HubTarget(StagedTarget):
    """A repository of the Hub; *is_private* is for one that is not there yet."""

    def __init__(self, repo: str, *, is_private: bool) -> None:
        super().__init__("hf.co")
        self.repo = repo
        self._is_private = is_private

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published, and a token that is none; see `PublishTarget.check`."""
        super().check(namespace, model, tags)
        with self._client() as api:
            api.whoami()

    def names(self, namespace: str, model: str, tags: Sequence[str]) -> tuple[Name, ...]:
        """Return the names under which Ollama gets the tags from the Hub: they are the repository's."""
        super().names(namespace, model, tags)
        return self._names(tags)

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:  # noqa: ARG002
        """Say what the tags name now, GGUF first; see `PublishTarget.published`."""
        with self._client() as api:
            state = self._state(api)
            small = [self._small_blob(api, path) for path in state.tree if _is_layer(path)]
        found = {}
        for tag in tags:
            path = _hub_files.gguf_name(self.repo, _hub_files.DEFAULT_QUANT if tag == "latest" else tag)
            if path in state.tree:
                digest, size = state.tree[path]
                found[tag] = (Blob(f"sha256:{digest}", size), *small)
        return found

    def publish(self, release: Release, log: Log) -> Published:
        """Send everything, then commit it at once; see `PublishTarget.publish`."""
        release.names(self.host)
        if lost := _hub_files.left_out(release):
            log.note(lost)
        with self._client() as api, ExitStack() as files:
            url = api.create_repo(self.repo, private=self._is_private or None, exist_ok=True)
            state = self._state(api)
            small = self._small(api, release, state, log)
            operations = self._operations(release, small, files)
            with log.bar(f"sending to {self.repo}") as progress:
                total, done = sum(entry.gguf_blob.size for entry in release.entries), 0
                for file, entry in operations.files:
                    file.told = partial(_advance, progress, done, total)
                    done += entry.gguf_blob.size
                commit = api.create_commit(
                    self.repo,
                    operations=operations.all,
                    commit_message=_MESSAGE,
                    parent_commit=state.commit,
                    num_threads=1,
                )
                progress(total, total)
            checks = self._read_back(api, release, small, commit.oid)
        names = self._published_names(release)
        shown = [name for name in names if name.tag != "latest"]
        pulls = [f"ollama pull {name}" for name in shown] if release.about.is_embedding else []
        commands = (*pulls, *map(release.use, shown))
        where = Check("repository", "proven", f"{url} at {commit.oid[:12]}")
        return Published(names, (f"git:{commit.oid}",) * len(names), commands, (*checks, where))

    def _published_names(self, release: Release) -> tuple[Name, ...]:
        """Give the names that the Hub gives; "latest" is there what the Hub chooses."""
        tags = [
            tag
            for entry in release.entries
            for tag in entry.tags
            if tag != "latest" or entry.tags[0] == _hub_files.DEFAULT_QUANT
        ]
        return self._names(tags)

    def _names(self, tags: Sequence[str]) -> tuple[Name, ...]:
        organization, _, name = self.repo.partition("/")
        return tuple(Name("hf.co", organization, name, tag) for tag in tags)

    def _small(self, api: HfApi, release: Release, state: _State, log: Log) -> dict[str, bytes]:
        """Make the texts and the card; a card that somebody wrote stays."""
        small = _hub_files.small_files(release)
        if _hub_files.CARD in state.tree and MARKER.encode() not in self._read(api, _hub_files.CARD):
            log.note(f"{self.repo} has a model card of its own, which stays")
            return small
        files = _hub_files.gguf_files(self.repo, release)
        licenses = [name for name in small if name.startswith("LICENSE")]
        card = render_card(self.repo, release, files, _hub_files.sizes(state.tree), licenses)
        return small | {_hub_files.CARD: card.encode()}

    def _operations(self, release: Release, small: Mapping[str, bytes], files: ExitStack) -> _Operations:
        """Make what is committed; the client hashes the files, which must be what they were.

        Raises:
            FormatError: if one is not.
        """
        from huggingface_hub import CommitOperationAdd

        opened, additions = [], []
        for name, entry in _hub_files.gguf_files(self.repo, release).items():
            file = files.enter_context(closing(_hub_files.CountedFile(entry.gguf)))
            addition = CommitOperationAdd(name, file)
            found = f"sha256:{addition.upload_info.sha256.hex()}"
            if (found, addition.upload_info.size) != (entry.gguf_blob.digest, entry.gguf_blob.size):
                raise changed(str(entry.gguf), entry.gguf_blob, found)
            opened.append((file, entry))
            additions.append(addition)
        return _Operations(opened, [*additions, *(CommitOperationAdd(name, text) for name, text in small.items())])

    def _read_back(self, api: HfApi, release: Release, small: Mapping[str, bytes], commit: str) -> tuple[Check, ...]:
        tree = self._tree(api, commit)
        bad = [name for name, text in small.items() if tree.get(name, ("", 0))[0] not in _ids(text)]
        checks = []
        for name, entry in _hub_files.gguf_files(self.repo, release).items():
            is_same = tree.get(name) == (entry.gguf_blob.digest.removeprefix("sha256:"), entry.gguf_blob.size)
            wrong = [*([] if is_same else [name]), *bad]
            detail = f"the Hub lists another {', '.join(wrong)}" if wrong else f"{len(small) + 1} files listed"
            checks += [Check(f"{tag} layers", "different" if wrong else "proven", detail) for tag in entry.tags]
        return tuple(checks)

    def _state(self, api: HfApi) -> _State:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            commit = api.model_info(self.repo).sha
        except RepositoryNotFoundError:
            return _State(None, {})
        return _State(commit, self._tree(api, commit) if commit else {})

    def _tree(self, api: HfApi, revision: str) -> Tree:
        """Return sha256 (of files in LFS) or git id, and size, by path."""
        from huggingface_hub.hf_api import RepoFile

        rows = api.list_repo_tree(self.repo, recursive=True, revision=revision)
        files = [row for row in rows if isinstance(row, RepoFile)]
        return {row.path: (row.lfs.sha256 if row.lfs else row.blob_id, row.size) for row in files}

    def _read(self, api: HfApi, path: str) -> bytes:
        """Return a small file of the repository."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            return Path(api.hf_hub_download(self.repo, path, local_dir=folder)).read_bytes()

    def _small_blob(self, api: HfApi, path: str) -> Blob:
        return hash_bytes(self._read(api, path))

    @contextmanager
    def _client(self) -> Iterator[HfApi]:
        """Give the real client, quiet, with its errors in our words."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging as client
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        verbosity, had_bars = client.get_verbosity(), not are_progress_bars_disabled()
        client.set_verbosity(logging.ERROR)
        disable_progress_bars()
        try:
            with warnings.catch_warnings(), _translated(self.repo):
                warnings.simplefilter("ignore")  # its advice on cards
                yield HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=os.environ.get("HF_TOKEN") or None)
        finally:
            client.set_verbosity(verbosity)
            if had_bars:
                enable_progress_bars()


@dataclass(frozen=True)
class _Operations:
    files: list[tuple[_hub_files.CountedFile, ReleaseEntry]]
    all: list[Any]


def _is_layer(path: str) -> bool:
    return path in ("template", "system", "params") or path.startswith("LICENSE")


def _ids(text: bytes) -> tuple[str, str]:
    return _hub_files.git_oid(text), hash_bytes(text).digest.removeprefix("sha256:")


def _advance(progress: Any, before: int, total: int, done: int) -> None:
    progress(before + done, total)


_HINTS = {
    401: _LOGIN,
    403: f"may this token write there? {_LOGIN}",
    404: "check the spelling of the organization",
    409: "somebody else changed the repository meanwhile: publish again",
    412: "somebody else changed the repository meanwhile: publish again",
    429: "publish again later; files that have arrived are kept",
}


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    """Say the client's errors in our words; its own classes are known by name, for its HTTP library changes."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        cause, status = _cause(error)
        if cause is None:
            raise
        if "LocalTokenNotFoundError" in _kinds(cause):
            raise AccessError("the Hub takes uploads with a token only", where=repo, hint=_LOGIN) from error
        raise AccessError(
            "the Hub can not be reached" if status is None else "the Hub refuses",
            where=repo,
            found=f"{type(cause).__name__}: {cause}".splitlines()[0][:300],
            hint=_HINTS.get(status or 0, "publish again; files that have arrived are kept"),
        ) from error


def _cause(error: BaseException | None) -> tuple[BaseException | None, int | None]:
    """Find the answer, with its status, or the trouble of the network behind an error; the client wraps both."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) or _kinds(error) & {"TransportError", "OSError", "ValueError"}:
            return error, status
        error = error.__cause__
    return None, None


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


class _Hub:
    """The plug-in."""

    name = "hub"
    usage = "hf:ORG/NAME[+private]"

    def accepts(self, text: str) -> bool:
        """Whether *text* is "hf:" and a repository."""
        return text.startswith(_PREFIX)

    def open(self, text: str) -> HubTarget:
        """Open a repository, which need not exist; nothing is asked yet.

        Raises:
            UsageError: if it can not be one, or Ollama could not name it.
        """
        repo = text.removeprefix(_PREFIX)
        is_private = repo.endswith(_PRIVATE)
        repo = repo.removesuffix(_PRIVATE)
        if not _REPOSITORY.fullmatch(repo):
            raise UsageError(
                "not a repository of the Hub that Ollama could name",
                where=f"--to {text}",
                expected=self.usage,
                hint="such as hf:my-org/my-model-GGUF; with +private a new one is made private",
            )
        return HubTarget(repo, is_private=is_private)


TARGET = _Hub()
