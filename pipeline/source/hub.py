"""The only door to huggingface_hub for reading: resolve a revision to a commit, fetch what a conversion needs.

Files lie in the client's own cache, shared with every other program that uses it.  The client honours HF_TOKEN,
proxies and the rest by itself; HF_ENDPOINT and the cache's place, which it reads once when imported, are handed to it
at each call, so that setting them later counts.  It is imported inside functions: that takes long.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import data
from pipeline.errors import AccessError, InputError, ResourceError, UnsupportedError
from pipeline.source import _lock
from pipeline.source._arrivals import Arrivals
from pipeline.source._cache import RepoCache
from pipeline.source._heads import fetch_head
from pipeline.source._hub_errors import is_unreachable, translate
from pipeline.source._line import Line
from pipeline.source._manifest import (
    CONFIG,
    Manifest,
    RemoteFile,
    choose_files,
    has_weights,
    index_of,
    read_shards,
)
from pipeline.source._transfer import fetch_file, has_content, is_sound
from pipeline.source.opened import OpenSource, Options, Progress
from pipeline.types import FileHead, Source

_TRUE = {"1", "ON", "YES", "TRUE"}
_SMALL_THREADS = 4  # small files cost round trips
_WEIGHT_THREADS = 3  # few, so that the shard that is needed first comes first
_FIRST_TRIES = 3  # a machine without network is told so after three seconds
_STEP = 1 << 20  # bytes between two reports of progress


@contextmanager
def open_repository(
    repo: str, revision: str | None, options: Options, *, name: str, branch: str = "main"
) -> Iterator[OpenSource]:
    """Open the checkpoint *repo* at *revision*, and bring into the cache what *options* want and is not there.

    Without a revision it is the commit that was recorded for *name*, or what *branch* is now if there is none or the
    options say so; that is recorded then.  If the Hub gives no answer, a complete copy in the cache serves, and the log
    is told.

    Raises:
        AccessError: if the Hub refuses or cannot be reached, with the next step as a hint.
        InputError: if the revision does not exist, or the repository holds no checkpoint.
        ResourceError: if the disk is too small.
        UsageError: if a setting is impossible.
    """
    visit = _Visit(repo, revision or branch, options, name if revision is None else f"{name}@{revision}")
    with _quiet():
        with visit.translated():
            opened = visit.open(is_pinned=revision is None and not options.update)
        try:
            yield opened
        finally:
            opened.stop()


class _Visit:
    """One opening of *repo* at *revision*, recorded as *key* in the lock file."""

    def __init__(self, repo: str, revision: str, options: Options, key: str) -> None:
        self.repo = repo
        self.revision = revision
        self.options = options
        self.key = key
        endpoint, root = settings()
        self.is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
        with self.translated():
            self.cache = RepoCache(root, repo)
        self.line = Line(repo, endpoint, options.patience, is_offline=self.is_offline)
        self.tally = _Tally(options.progress)

    def open(self, *, is_pinned: bool) -> OpenSource:
        """Find out which files are needed, fetch the small ones, and see to the weights."""
        recorded = _lock.read(self.key, self.repo, self.revision)
        if recorded and (is_pinned or self.is_offline):
            return self._take(recorded)
        try:
            commit, listed = self._list_files()
        except Exception as error:
            if not is_unreachable(error):
                raise
            return self._from_cache(recorded, error)
        files = [listed[n] for n in choose_files(listed, self.repo)]
        folder = self._fetch_small(commit, files)
        if index := index_of(f.name for f in files):
            shards = read_shards(folder / index)
            files += [f for n, f in sorted(listed.items()) if n in shards]
        manifest = Manifest(self.repo, self.revision, commit, tuple(files))
        if self.options.weights != "all":
            self._record(manifest)
        opened = self._see_to_weights(manifest)
        if self.options.weights == "all":  # until then an older copy that is whole is the better one
            self._record(manifest)
        return opened

    def _take(self, manifest: Manifest) -> OpenSource:
        """Open what the lock file says."""
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            self._fetch_small(manifest.commit, manifest.files)
            return self._see_to_weights(manifest)
        except InputError as error:
            if not isinstance(error.__cause__, RevisionNotFoundError):
                raise
            raise InputError(
                "the commit that was recorded for this model is gone from the Hub",
                where=f"{self.repo}@{manifest.commit}",
                hint=f"run: gguf-pipeline pull {self.key}",
            ) from error

    def _list_files(self) -> tuple[str, dict[str, RemoteFile]]:
        commit = self.cache.commit_of(self.revision)
        has_copy = commit is not None and has_weights(self.cache.snapshot(commit))
        patience = replace(self.options.patience, tries=1 if has_copy else _FIRST_TRIES)
        return self.line.insist(lambda: self.line.list_files(self.revision), patience)

    def _from_cache(self, recorded: Manifest | None, error: Exception) -> OpenSource:
        """Open the copy in the cache, if it is whole; else raise *error* or say what to do."""
        if recorded and all(self._is_here(recorded.commit, f) for f in recorded.files):
            commit: str | None = recorded.commit
        else:
            commit = self.cache.commit_of(self.revision)
        if commit is None or not (self.cache.snapshot(commit) / CONFIG).exists():
            raise error
        folder = self.cache.snapshot(commit)
        if not has_weights(folder):
            raise AccessError(
                "only a part of the model is in the cache, and the Hub is out of reach",
                where=f"{self.repo}@{self.revision}",
                expected=f"{CONFIG} and all weights",
                found=", ".join(sorted(p.name for p in folder.iterdir())[:12]),
                hint=f"run: gguf-pipeline pull {self.repo}  while online",
            ) from error
        if not self.is_offline:
            self.options.log(f"the Hub cannot be reached; {self.repo} comes from the cache, commit {commit}")
        return OpenSource(self._source(commit))

    def _fetch_small(self, commit: str, files: Iterable[RemoteFile]) -> Path:
        """Fetch what is missing of everything but weights, and return the folder."""
        folder = self.cache.snapshot(commit)
        missing = {folder / f.name: f for f in files if not f.is_weights and not self._is_here(commit, f)}
        self._check_disk(missing.values())
        self.tally.expect(missing.values())
        self._run(missing, lambda _path, file: self._fetch(commit, file), _SMALL_THREADS)
        return folder

    def _see_to_weights(self, manifest: Manifest) -> OpenSource:
        commit, wanted = manifest.commit, self.options.weights
        folder = self.cache.snapshot(commit)
        missing = {folder / f.name: f for f in manifest.files if f.is_weights and not self._is_here(commit, f)}
        heads: dict[Path, FileHead] = {}
        if wanted != "none":
            self._check_disk(missing.values())
        if wanted != "all":
            self._run(
                {p: f for p, f in missing.items() if p.suffix == ".safetensors"},
                lambda path, file: heads.update({path: fetch_head(self.line, self.cache, commit, file)}),
                _SMALL_THREADS,
            )
        if wanted == "none" and len(heads) < len(missing):
            raise UnsupportedError(
                "its weights are pickles, which tell nothing before they are here",
                where=self.repo,
                expected="*.safetensors, whose headers come first",
                found=", ".join(sorted(p.name for p in missing if p not in heads)[:3]),
                hint=f"run: gguf-pipeline pull {self.repo}",
            )
        arrivals = Arrivals(
            missing, self._translating(lambda path, file: self._fetch(commit, file, heads.get(path))),
            self.line.hang_up, _WEIGHT_THREADS, is_wanted=wanted != "none",
        )  # fmt: skip
        if wanted != "none":
            self.tally.expect(missing.values())
        # Pickle files have no header that could come first.
        if wanted == "all" or (wanted == "stream" and len(heads) < len(missing)):
            arrivals.wait_for_all()
        return OpenSource(self._source(commit), heads, arrivals)

    def _run(self, files: dict[Path, RemoteFile], fetch: Callable[[Path, RemoteFile], None], threads: int) -> None:
        """Call *fetch* for all *files*, some at a time."""
        Arrivals(files, self._translating(fetch), self.line.hang_up, threads).wait_for_all()

    def _translating(self, fetch: Callable[[Path, RemoteFile], None]) -> Callable[[Path, RemoteFile], None]:
        def translating(path: Path, file: RemoteFile) -> None:
            with self.translated():
                fetch(path, file)

        return translating

    def _fetch(self, commit: str, file: RemoteFile, head: FileHead | None = None) -> None:
        """Fetch one file; its beginning must be *head*, by which a plan was made."""

        def waiting() -> None:
            self.options.log(f"another process downloads {file.name}; waiting for it")

        fetch_file(self.line, self.cache, commit, file, lambda n: self.tally.add(file.name, n), waiting)
        path = self.cache.snapshot(commit) / file.name
        if head is None:
            return
        with path.open("rb") as opened:
            if opened.read(len(head.data)) != head.data:
                raise AccessError(
                    "the header that came first is not that of the file",
                    where=path,
                    hint="run the command again; if it stays, a proxy or a mirror (HF_ENDPOINT) mixes files up",
                )

    def _is_here(self, commit: str, file: RemoteFile) -> bool:
        path = self.cache.snapshot(commit) / file.name
        if not is_sound(path, file.size):
            if file.etag is None or not is_sound(self.cache.blob(file.etag), file.size):
                return False
            self.cache.point(commit, file.name, file.etag)  # another commit has this content, or a killed run left it
        if self.options.rehash and file.etag and not has_content(path, file.etag):
            self.options.log(f"{file.name} is damaged in the cache, and is downloaded again")
            path.resolve().unlink()
            return False
        return True

    def _check_disk(self, missing: Iterable[RemoteFile]) -> None:
        """Refuse before the download what the disk cannot take."""
        missing = list(missing)
        if missing:
            hint = "become its owner, or set HF_HOME to a folder of your own"
            data.require_writable(self.cache.folder / "blobs", "the cache folder cannot be written", hint)
        need = 0
        for file in missing:
            begun = self.cache.partial(file.etag) if file.etag else None
            need += max(0, (file.size or 0) - (begun.stat().st_size if begun and begun.exists() else 0))
        folder = data.nearest_existing(self.cache.root)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise ResourceError(
                f"not enough disk space to download {self.repo}",
                where=folder,
                expected=f"{need:,} bytes",
                found=f"{free:,} bytes free",
                hint="free some space, or set HF_HOME to a folder on a bigger disk",
            )

    def _record(self, manifest: Manifest) -> None:
        """Write down what the revision is, in our lock file and as the client does."""
        if self.options.weights != "none" or self.cache.commit_of(self.revision) is None:
            self.cache.remember(self.revision, manifest.commit)
        try:
            _lock.write(self.key, manifest)
        except OSError as error:
            self.options.log(f"the commit of {self.key} is not recorded: {error}")

    def _source(self, commit: str) -> Source:
        name = self.repo.rpartition("/")[2]
        return Source(name, self.cache.snapshot(commit), self.repo, self.revision, commit)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Say the client's errors in our words."""
        try:
            yield
        except Exception as error:
            ours = translate(error, self.repo, self.revision)
            if ours is None:
                raise
            raise ours from error


class _Tally:
    """Adds up what all threads download, and tells *progress* in steps."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = self._total = self._told = 0

    def expect(self, files: Iterable[RemoteFile]) -> None:
        """Add *files* to what there is in all."""
        with self._lock:
            self._total += sum(file.size or 0 for file in files)

    def add(self, name: str, n_bytes: int) -> None:
        """Add bytes of the file *name* to what is done."""
        with self._lock:
            self._done += n_bytes
            if self._progress and (abs(self._done - self._told) >= _STEP or self._done == self._total):
                self._told = self._done
                self._progress(name, self._done, self._total or None)


def settings() -> tuple[str | None, Path]:
    """Read the two settings that the client fixes when it is imported: its endpoint (None: its own) and its cache."""
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or (home and f"{home}/hub")
    root = Path(os.path.expandvars(cache)) if cache else Path(constants.HF_HUB_CACHE)
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, data.user_path(root)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's advice ("set a token") off the terminal, unless the user asked for more than warnings."""
    from huggingface_hub.utils import logging as client

    before = client.get_verbosity()
    if before == logging.WARNING:
        client.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client.set_verbosity(before)
