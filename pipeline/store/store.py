"""A store: blobs by content, and manifests by name on top of them."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline import crash
from pipeline.errors import AccessError, FormatError, PipelineError, UsageError
from pipeline.store import _disk, locks
from pipeline.store.blobs import TEMP_PREFIX, Blobs, hash_bytes, hash_file
from pipeline.store.locks import Message
from pipeline.store.manifest import MODEL, Manifest
from pipeline.store.names import Name
from pipeline.types import Blob, Layer

_MANIFEST_TEMP_PREFIX = ".pkg-"
_PLACE_TRIES = 20
_BLOB_FILE = re.compile(r"sha256-[0-9a-f]{64}")
_ANY_DIGEST = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")


def _quiet(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Entry:
    """One model of a store.  *digest* is that of the manifest file, *modified* its time (UTC), *size* in bytes."""

    name: Name
    digest: str
    size: int
    modified: datetime
    layers: tuple[Layer, ...]

    @property
    def id(self) -> str:
        """What `ollama list` shows as ID."""
        return self.digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True)
class Problem:
    """A file under manifests/ that names no model, and why."""

    path: Path
    reason: str


class Verified(NamedTuple):
    """A layer, read back; *found* is what its file has: a digest, a size, or "missing"."""

    layer: Layer
    ok: bool
    found: str


@dataclass(frozen=True)
class Swept:
    """A file that `gc` removed, and its size in bytes."""

    path: Path
    size: int


class Store(Blobs):
    """Ollama's store under *root*; *tool* is the program whose `list` and `rm` work on it, for hints.

    Hold `writing()` from the first blob to the manifest: without it, a removal next door may take a blob that is there
    already and that the manifest is about to name.
    """

    def __init__(self, root: Path, tool: str = "gguf-pipeline") -> None:
        super().__init__(root)
        self.tool = tool
        self.manifests_dir = root / "manifests"

    def writing(self, waiting: Message = _quiet) -> AbstractContextManager[None]:
        """Hold the store's lock as one of its writers; *waiting* gets a sentence if a removal must finish first."""
        return self.locked(locks.shared, waiting)

    def manifest_path(self, name: Name) -> Path:
        """Return where the manifest of *name* lies, whether or not it exists."""
        return self.manifests_dir / name.path

    def manifest_bytes(self, name: Name) -> bytes:
        """Return a manifest's bytes as they stand.

        Raises:
            UsageError: if the store has no such model.
            AccessError: if the file can not be read.
        """
        path = self.manifest_path(name)
        with _disk.translated(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass
        known = [str(entry.name) for entry in self.list()]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`{self.tool} list` shows what is there"
        raise UsageError(f"no such model in the store {self.root}", where=name, hint=hint)

    def read_manifest(self, name: Name) -> Manifest:
        """Return the manifest of a model.

        Raises:
            UsageError: if the store has no such model.
            FormatError: if the file is no manifest.
        """
        return Manifest.from_bytes(self.manifest_bytes(name), self.manifest_path(name))

    def model_path(self, name: Name) -> Path:
        """Return where the GGUF of a model lies.

        Raises:
            UsageError: if the store has no such model.
            FormatError: if its manifest is bad, or names no GGUF.
        """
        for layer in self.read_manifest(name).layers:
            if layer.media_type == MODEL:
                return self.blob_path(layer.blob.digest)
        raise FormatError("the manifest names no model", where=name, hint="publish it again")

    def write_manifest(self, name: Name, manifest: Manifest) -> str:
        """Make one model visible and return the manifest's digest; see `write_manifests`."""
        return self.write_manifests([(name, manifest)])[0]

    def write_manifests(self, items: Sequence[tuple[Name, Manifest]]) -> tuple[str, ...]:
        """Make models visible, all of them or, after an error, none; return the manifests' digests.

        Every blob must be there; they are looked at before, and once more when the names are in place, because an
        Ollama that removes a model in between may take a blob that it shares with ours.

        Raises:
            AccessError: if a blob is missing or has another size, or the disk refuses.
            UsageError: if a name is there in another spelling of upper and lower case.
        """
        return self._write(items, [manifest.to_bytes() for _, manifest in items])

    def write_manifest_bytes(self, name: Name, data: bytes) -> str:
        """Make one model visible with a manifest as somebody else encoded it, kept byte for byte; return its digest.

        Raises:
            FormatError: if *data* is no manifest.
            AccessError, UsageError: as for `write_manifests`.
        """
        return self._write([(name, Manifest.from_bytes(data))], [data])[0]

    def _write(self, items: Sequence[tuple[Name, Manifest]], data: Sequence[bytes]) -> tuple[str, ...]:
        self._require_blobs(items)
        self.check_names([name for name, _ in items])
        with _disk.translated(self.manifests_dir), ExitStack() as undo:
            temps = [undo.enter_context(self._manifest_temp(text)) for text in data]
            crash.point("manifest written")
            with ExitStack() as restore:
                for (name, _), temp in zip(items, temps, strict=True):
                    restore.callback(self._restore, self.manifest_path(name), self._old_bytes(name))
                    self._place(temp, self.manifest_path(name))
                    crash.point("manifest named")
                self._require_blobs(items)
                restore.pop_all()
        return tuple(hash_bytes(text).digest for text in data)

    def list(self) -> tuple[Entry, ...]:
        """Return the store's models, the newest first; files that are no manifest are left to `problems`.

        Raises:
            AccessError: if the root is no folder, or a folder can not be read.
        """
        entries = [found for found in self._scan() if isinstance(found, Entry)]
        return tuple(sorted(entries, key=lambda entry: (-entry.modified.timestamp(), entry.name)))

    def problems(self) -> tuple[Problem, ...]:
        """Return what lies under manifests/ and names no model."""
        return tuple(found for found in self._scan() if isinstance(found, Problem))

    def remove(self, *names: Name, waiting: Message = _quiet, dry_run: bool = False) -> tuple[Blob, ...]:
        """Remove models and the blobs that no other manifest names; return those blobs.  With *dry_run* all stays.

        Raises:
            UsageError: if the store has no such model; then none is removed.
            AccessError: if the disk refuses.
        """
        with self.locked(locks.exclusive, waiting):
            own = {digest for name in names for digest in _digests(self.manifest_bytes(name))}
            paths = dict.fromkeys(self.manifest_path(name) for name in names)
            unused = sorted(own - self.referenced(without=paths))
            blobs = [path for path in map(self.blob_path, unused) if path.exists()]
            for path in paths if not dry_run else ():
                with _disk.translated(path):
                    path.unlink()
                    crash.point("manifest removed")
                    _disk.sync_folder(path.parent)
                    _disk.remove_empty_folders(path.parent, self.manifests_dir)
            with _disk.translated(self.blobs_dir):
                return tuple(_unlinked(path, "blob removed", dry_run) for path in blobs)

    def sweep(self) -> None:
        """Remove the temporary files that killed processes of ours left; none while another process is at work."""
        if not self.root.is_dir():
            return
        with _disk.translated(self.root), locks.sweeping(self.root) as alone:
            for path in self._temporaries() if alone else ():
                with suppress(OSError):  # another user's: theirs to remove
                    path.unlink()

    def gc(self, older_than: float = 3600.0, waiting: Message = _quiet, *, dry_run: bool = False) -> tuple[Swept, ...]:
        """Remove unreferenced blobs and left-over temporary files of ours that are *older_than* seconds or more.

        With *dry_run* they are returned and stay.

        Raises:
            FormatError: if a manifest can not be read: the blobs that it names are then unknown.
            AccessError: if the disk refuses.
        """
        with self.locked(locks.exclusive, waiting), _disk.translated(self.root):
            for problem in self.problems():
                raise FormatError(
                    "a bad manifest: which blobs it needs is unknown, so none are removed",
                    where=problem.path,
                    found=problem.reason,
                    hint="remove this file, then run gc again",
                )
            limit = time.time() - older_than
            with locks.sweeping(self.root) as alone:
                found = [*self._unreferenced(), *(self._temporaries() if alone else ())]
                old = [path for path in found if path.stat().st_mtime <= limit]
                sizes = [_unlinked(path, "garbage removed", dry_run).size for path in old]
                return tuple(map(Swept, old, sizes))

    def verify(self, name: Name) -> Iterator[Verified]:
        """Read every blob of a model back and hash it, one after the other.

        Raises:
            UsageError: if the store has no such model.
            FormatError: if its manifest is bad.
        """
        for layer in self.read_manifest(name).all_layers:
            path = self.blob_path(layer.blob.digest)
            with _disk.translated(path):
                try:
                    found = hash_file(path)
                except FileNotFoundError:
                    yield Verified(layer, False, "missing")
                    continue
            other_size = found.digest == layer.blob.digest and found.size != layer.blob.size
            yield Verified(layer, found == layer.blob, f"{found.size} bytes" if other_size else found.digest)

    @contextmanager
    def locked(self, lock: locks.Lock, waiting: Message = _quiet) -> Iterator[None]:
        """Hold the store's *lock*, of either kind; the root is made if it is missing."""
        with ExitStack() as stack:
            with _disk.translated(self.root):
                _disk.make_folder(self.root)
                stack.enter_context(lock(self.root, waiting))
            yield

    def _scan(self) -> Iterator[Entry | Problem]:
        for path in self._manifest_files():
            try:
                with _disk.translated(path):
                    data, modified = path.read_bytes(), path.stat().st_mtime
                name = Name(*path.relative_to(self.manifests_dir).parts)
                manifest = Manifest.from_bytes(data)
            except PipelineError as exc:
                if path.exists():  # else removed meanwhile
                    yield Problem(path, f"{exc.what} ({exc.found})" if exc.found else exc.what)
                continue
            digest = hash_bytes(data).digest
            yield Entry(name, digest, manifest.size, datetime.fromtimestamp(modified, UTC), manifest.layers)

    def _manifest_files(self) -> Iterator[Path]:
        """Walk exactly the depth that Ollama walks: host, namespace, model, tag."""
        with _disk.translated(self.root), suppress(FileNotFoundError):
            os.scandir(self.manifests_dir).close()  # a root that is a file is an error, a missing one is empty
        level = [self.manifests_dir]
        for _ in range(4):
            level = [path for folder in level if folder.is_dir() for path in _children(folder)]
        return (path for path in level if not path.is_dir())

    def referenced(self, without: Collection[Path] = ()) -> set[str]:
        """Collect every digest that any manifest file mentions, the bad ones included; *without* are left out."""
        paths = [path for path in self._manifest_files() if path not in without]
        return {digest for path in paths for digest in _digests(path.read_bytes())}

    def _unreferenced(self) -> Iterator[Path]:
        used = self.referenced()
        for path in sorted(self.blobs_dir.glob("sha256-*")):
            if _BLOB_FILE.fullmatch(path.name) and path.name.replace("-", ":") not in used:
                yield path

    def _temporaries(self) -> Iterator[Path]:
        yield from sorted(self.blobs_dir.glob(f"{TEMP_PREFIX}*"))
        yield from sorted(self.blobs_dir.glob(f".{TEMP_PREFIX}*"))  # of a writer that works beside its final name
        yield from sorted(self.root.glob(f"{_MANIFEST_TEMP_PREFIX}*"))

    def _require_blobs(self, items: Sequence[tuple[Name, Manifest]]) -> None:
        for name, manifest in items:
            for layer in manifest.all_layers:
                if not self.has(layer.blob.digest, layer.blob.size):
                    raise AccessError(
                        "a blob of the model is not in the store",
                        where=name,
                        expected=f"{layer.blob.digest} ({layer.blob.size} bytes)",
                        hint="another program removed it; publish again",
                    )

    def check_names(self, names: Sequence[Name]) -> None:
        """Refuse a second spelling of a name: older Ollamas mix up models whose names differ in case alone.

        Raises:
            UsageError: if a name is there in another spelling of upper and lower case.
        """
        known = {"/".join(path.parts[-4:]) for path in self._manifest_files()} | {str(name.path) for name in names}
        for name in names:
            for other in known:
                if other.lower() == str(name.path).lower() and other != str(name.path):
                    found = ":".join(other.rsplit("/", 1))
                    raise UsageError(
                        "the store has this name in another spelling",
                        where=name,
                        found=found,
                        hint=f"use that spelling, or remove it first: {self.tool} rm {found}",
                    )

    @contextmanager
    def _manifest_temp(self, data: bytes) -> Iterator[Path]:
        """Write a manifest to a file at the root: a stray name under manifests/ would stop Ollama's prune."""
        _disk.make_folder(self.blobs_dir)
        with locks.staging(self.root), ExitStack() as stack:
            fd, text = tempfile.mkstemp(prefix=_MANIFEST_TEMP_PREFIX, dir=self.root)
            path = Path(text)
            stack.callback(path.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            path.chmod(_disk.FILE_MODE)
            _disk.adopt(path, self.blobs_dir)
            yield path

    def _place(self, temp: Path, final: Path) -> None:
        for left in reversed(range(_PLACE_TRIES)):
            try:
                self._make_folder(final.parent)
                temp.replace(final)
                break
            except FileNotFoundError:
                # a starting Ollama prunes empty folders, these too before the file is in them
                if not left:
                    raise
        _disk.sync_folder(final.parent)

    def _make_folder(self, folder: Path) -> None:
        _disk.make_folder(folder)

    def _old_bytes(self, name: Name) -> bytes | None:
        try:
            return self.manifest_path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _restore(self, path: Path, old: bytes | None) -> None:
        if old is None:
            path.unlink(missing_ok=True)
            _disk.remove_empty_folders(path.parent, self.manifests_dir)
            return
        with self._manifest_temp(old) as temp:
            self._place(temp, path)


def _digests(data: bytes) -> set[str]:
    return {f"sha256:{digest.decode().lower()}" for digest in _ANY_DIGEST.findall(data)}


def _children(folder: Path) -> list[Path]:
    """List a folder, which may be gone; one that can not be read is an error: what it names would be lost."""
    with _disk.translated(folder), suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return []


def _unlinked(path: Path, point: str, dry_run: bool = False) -> Blob:
    """Remove a file, pass the crash point *point*, and tell what the file was; with *dry_run* only tell."""
    blob = Blob(path.name.replace("-", ":", 1), path.stat().st_size)
    if not dry_run:
        path.unlink()
        crash.point(point)
    return blob
