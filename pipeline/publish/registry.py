"""The target `http(s)://host[:port]`: any registry that speaks the OCI distribution protocol."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import AccessError, PipelineError, UsageError
from pipeline.publish import _layers
from pipeline.publish._body import changed
from pipeline.publish._read_back import present, read_back
from pipeline.publish._registry_api import Reader, RegistryApi
from pipeline.publish._release import PULL_CHECK, Published, Release, ReleaseEntry
from pipeline.publish._staged import StagedTarget
from pipeline.publish._target import redacted
from pipeline.publish._upload import CHUNK_BYTES, Content, Uploader
from pipeline.publish._wire import TransientError, Wire
from pipeline.runtime.registry import NOT_A_REGISTRY, try_pull
from pipeline.runtime.web import session
from pipeline.store import Name
from pipeline.store.blobs import hash_bytes
from pipeline.types import Blob, Check, Log

_FORM = "http://HOST[:PORT] or https://HOST[:PORT]"
_WORTH_A_SEARCH = 10_000_000  # bytes: smaller blobs are sent rather than looked for elsewhere


class RegistryTarget(StagedTarget):
    """A registry: blobs first, manifests last, and read back as `ollama pull` reads."""

    def __init__(self, url: SplitResult, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__(url.netloc.rpartition("@")[2].lower())
        self._wire = Wire(url)
        self._api = RegistryApi(self._wire)
        self._is_http = url.scheme == "http"
        self._chunk_bytes = chunk_bytes

    def __enter__(self) -> Self:
        """See that a registry answers, before any work is done."""
        self._api.ping()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._wire.close()

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published, and a registry that takes nothing; see `PublishTarget.check`."""
        names = self.names(namespace, model, tags)
        self._api.cancel(self._api.start(names[0].repository))

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:
        """Say what the tags name now; see `PublishTarget.published`."""
        return present(Reader(self._api), self.names(namespace, model, tags))

    def publish(self, release: Release, log: Log) -> Published:
        """Send all blobs, then the manifests; see `PublishTarget.publish`."""
        pairs = release.names(self.host)
        made = {id(entry): _layers.assemble(entry) for entry in release.entries}
        manifests = [(name, made[id(entry)].manifest) for name, entry in pairs]
        self._send_blobs(pairs[0][0].repository, _contents(release.entries, made), log)
        with _all_or_none(self._api) as place:
            for name, manifest in manifests:
                place(name, manifest.to_bytes())
            checks = read_back(Reader(self._api), manifests)
            _require_same(self.host, checks)
        digests = tuple(hash_bytes(manifest.to_bytes()).digest for _, manifest in manifests)
        checks += (self._try_pull(pairs[0][0]),)
        return Published(tuple(name for name, _ in pairs), digests, self._commands(release, pairs), checks)

    def _send_blobs(self, repository: str, contents: Sequence[Content], log: Log) -> None:
        uploader = Uploader(self._api, repository, self._chunk_bytes)
        total = sum(content.blob.size for content in contents)
        done = 0
        with log.bar(f"sending to {self.host}") as progress:
            for content in contents:
                if content.blob.size >= _WORTH_A_SEARCH:
                    self._mount(repository, content.blob)
                uploader.upload(content, partial(_advance, progress, done, total))
                done += content.blob.size
                progress(done, total)

    def _mount(self, repository: str, blob: Blob) -> None:
        """Let the registry take a blob from another repository, where the same model has another name."""
        with suppress(AccessError):  # a registry need not list what it has; the bytes can be sent
            if self._api.blob_size(repository, blob.digest) is None:
                source = self._api.find_elsewhere(repository, blob)
                if source:
                    self._api.mount(repository, blob.digest, source)

    def _try_pull(self, name: Name) -> Check:
        """Ask for the model as `ollama pull` does: without a login, and by the addresses that it takes."""
        label, command = PULL_CHECK, self._pull(name)
        try:
            with session(self._wire.host) as http:
                problem = try_pull(http, self._wire.base, name.repository, name.tag)
        except NOT_A_REGISTRY as exc:
            return Check(label, "not checked", f"no answer: {type(exc).__name__}", command)
        if problem:
            return Check(label, "different", problem)
        return Check(label, "proven", "the registry answers as `ollama pull` needs it")

    def _pull(self, name: Name) -> str:
        return f"ollama pull {'--insecure ' if self._is_http else ''}{name}"

    def _commands(self, release: Release, pairs: Sequence[tuple[Name, ReleaseEntry]]) -> tuple[str, ...]:
        shown = [name for name, entry in pairs if name.tag == entry.tags[0]]
        return (*map(self._pull, shown), release.use(shown[0]))


def _contents(entries: Sequence[ReleaseEntry], made: Mapping[int, _layers.Assembled]) -> list[Content]:
    """List the blobs of all entries, each once: the small ones first, so that a refusal comes early."""
    texts = {digest: text for entry in entries for digest, text in made[id(entry)].texts.items()}
    small = [Content(Blob(digest, len(text)), partial(io.BytesIO, text)) for digest, text in texts.items()]
    files = {entry.gguf_blob.digest: entry for entry in entries}
    return [*small, *(Content(entry.gguf_blob, partial(_open, entry)) for entry in files.values())]


def _open(entry: ReleaseEntry) -> BinaryIO:
    """Open a GGUF that still has the size it had."""
    size = entry.gguf.stat().st_size
    if size != entry.gguf_blob.size:
        raise changed(str(entry.gguf), entry.gguf_blob, f"{size} bytes")
    return entry.gguf.open("rb")


def _advance(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


@dataclass(frozen=True)
class _Placed:
    """A manifest that was put under a tag: what the tag named before, and whether the manifest was there already."""

    name: Name
    data: bytes
    before: bytes | None
    was_there: bool


@contextmanager
def _all_or_none(api: RegistryApi) -> Iterator[Callable[[Name, bytes], None]]:
    """Give what puts a manifest in its place; after an error, what was there before is put back."""
    placed: list[_Placed] = []

    def place(name: Name, data: bytes) -> None:
        before = api.manifest(name.repository, name.tag)
        was_there = api.manifest(name.repository, hash_bytes(data).digest) is not None
        placed.append(_Placed(name, data, before, was_there))
        api.put_manifest(name.repository, name.tag, data)

    try:
        yield place
    except BaseException as error:
        left = _put_back(api, placed)
        if left and isinstance(error, PipelineError):
            raise AccessError(
                f"{error.what}; what may be visible of the release is whole: {', '.join(map(str, left))}",
                where=error.where,
                found=error.found,
                hint="publish again, which completes it",
            ) from error
        raise


def _put_back(api: RegistryApi, placed: Sequence[_Placed]) -> list[Name]:
    """Make every tag name what it named before; return those that may not."""
    changed_tags = [one for one in placed if one.data != one.before]
    for one in reversed(changed_tags):
        try:
            _undo(api, one)
        except PipelineError as error:
            if isinstance(error.__cause__, TransientError):
                return [one.name for one in changed_tags]  # it is out of reach
    return [one.name for one in changed_tags if not _is_back(api, one)]


def _undo(api: RegistryApi, one: _Placed) -> None:
    if one.before is not None:
        api.put_manifest(one.name.repository, one.name.tag, one.before)
        return
    api.delete_manifest(one.name.repository, one.name.tag)
    # Some registries delete by digest alone; then every tag of the manifest goes, so none may have been there before.
    if not one.was_there and not _is_back(api, one):
        api.delete_manifest(one.name.repository, hash_bytes(one.data).digest)


def _is_back(api: RegistryApi, one: _Placed) -> bool:
    try:
        return api.manifest(one.name.repository, one.name.tag) == one.before
    except PipelineError:
        return False


def _require_same(host: str, checks: Sequence[Check]) -> None:
    """Refuse a registry that shows something else than it was sent.

    Raises:
        AccessError: naming what differs.
    """
    bad = [f"{check.name}: {check.detail}" for check in checks if check.state == "different"]
    if bad:
        raise AccessError(
            "the registry does not show what it was sent",
            where=host,
            found="; ".join(bad),
            hint="is a cache or a proxy in front of it? publish to the registry itself",
        )


class _Registry:
    """The plug-in."""

    name = "registry"
    usage = "http(s)://HOST[:PORT]"

    def accepts(self, text: str) -> bool:
        """Whether *text* is the address of a web server."""
        return text.lower().startswith(("http://", "https://"))

    def open(self, text: str) -> RegistryTarget:
        """Open a registry, of which nothing is asked yet.

        Raises:
            UsageError: if *text* is more or less than scheme, host and port, perhaps with a login.
        """
        shown = f"--to {redacted(text)}"
        try:
            url = urlsplit(text)
            host, _ = url.hostname, url.port
        except ValueError as exc:
            raise UsageError("not the address of a registry", where=shown, expected=_FORM, found=exc) from exc
        if not host or url.path.strip("/") or url.query or url.fragment:
            raise UsageError(
                "not the address of a registry",
                where=shown,
                expected=_FORM,
                hint="the model's name is not part of it: --name NAMESPACE/MODEL",
            )
        if ":" in host:
            raise UsageError(
                "Ollama knows no registry by an IPv6 address",
                where=shown,
                hint="give a host name; localhost for this machine",
            )
        return RegistryTarget(url)


TARGET = _Registry()
