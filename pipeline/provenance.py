"""What a model was made of: the digests of its source files, taken while other work goes on.

A large file in the Hugging Face cache is named by its content's sha256; that name is taken as it stands, as the client
does.  All other files are read and hashed.

A file is known again without being read by what the system says of it: size, times, inode and device.  The time of the
last change of the inode is among them, which no program can set back.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline import data
from pipeline.errors import InputError

if TYPE_CHECKING:  # at run time it would load NumPy, which takes longer than to begin to hash
    from pipeline.types import PlannedTensor

# What a GGUF is made of beside the weights, in the folder of a checkpoint.
_TEXTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "additional_chat_templates/*.jinja")

# A file may change again within one tick of its file system's clock; FAT's, the coarsest, has two seconds.
_TICK_NS = 2_000_000_000

_MOST_FILES = 10_000  # of a folder that is told by how it looks

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20

# While Python loads, a thread that reads and hashes gets the interpreter's lock too seldom; what is worth a process of
# its own, which takes 0.02 s, is hashed there.
_LARGE = 1 << 26
_HASHER = Path(__file__).with_name("_hasher.py")
_STOP_S = 0.2  # how soon it is stopped


@dataclass(frozen=True)
class SourceFile:
    """A file that the model was made of.

    *name* is relative to the checkpoint's folder; of another file it has the name of its folder.  *size* is in bytes,
    *sha256* 64 hex digits.  *by* is "content" where the file was hashed, "cache" where the Hugging Face cache has it
    under that name.  *seen* is what the system said of the file when it was hashed (modification and change time in
    nanoseconds, inode, device), None where that may not tell it from a later state.
    """

    name: str
    size: int
    sha256: str
    by: str
    seen: tuple[int, ...] | None = field(default=None, compare=False)


def weights_of(tensors: Iterable[PlannedTensor]) -> tuple[Path, ...]:
    """List the files that *tensors* are read from, in the order in which they are needed."""
    sources = (source for tensor in tensors if tensor.view for source in tensor.view.sources)
    return tuple(dict.fromkeys(source.path for source in sources))


def files_of(folders: Iterable[Path], weights: Iterable[Path]) -> tuple[Path, ...]:
    """List the files that a model is made of: *weights*, and the configuration and tokenizer in *folders*."""
    texts = {path for folder in folders for pattern in _TEXTS for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted({*weights, *texts}))


def cached_digest(path: Path) -> str | None:
    """Return the sha256 that the Hugging Face cache knows *path* by: it links to a blob of that name."""
    target = path.resolve()
    is_blob = target != path and target.parent.name == "blobs" and _SHA256.fullmatch(target.name)
    return target.name if is_blob else None


class SourceHashes:
    """Hashes *paths* in a thread of its own, from entering the context on; leaving it stops what is under way.

    *ready* is called with each path before it is read: it returns when the file may be, or raises.
    """

    def __init__(self, folder: Path, paths: Iterable[Path], ready: Callable[[Path], None] | None = None) -> None:
        self._folder = folder
        self._paths = tuple(paths)
        self._ready = ready
        self._stop = threading.Event()
        self._found: Future[tuple[SourceFile, ...]] = Future()
        self._thread = threading.Thread(target=self._run, name="source-hashes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def result(self) -> tuple[SourceFile, ...]:
        """Wait for the last file and return all, in the order of their names.

        Raises:
            InputError: if a file cannot be read.
        """
        return self._found.result()

    def _run(self) -> None:
        try:
            self._found.set_result(tuple(self._file(path) for path in self._paths))
        except BaseException as error:  # it is raised again in the thread that asks
            self._found.set_exception(error)

    def _file(self, path: Path) -> SourceFile:
        if self._ready:
            self._ready(path)
        begun = _begun.get(path)
        if begun and begun is not self and _looks_like(path, row := begun.result()[0]):
            return row
        return describe(self._folder, path, self._stop)


_begun: dict[Path, SourceHashes] = {}  # what `hashing_ahead` is at


@contextmanager
def hashing_ahead(model: str) -> Iterator[None]:
    """Begin to hash the first weights of *model*, if that is a folder, while all that the work takes is still loaded.

    Inside, `SourceHashes` of that folder goes on with it, unless the file has changed since.  What cannot be read is
    left to those who want it.
    """
    path = _first_weights(model)
    if path is None:
        yield
        return
    with SourceHashes(path.parent, [path]) as hashes:
        _begun[path] = hashes
        try:
            yield
        finally:
            del _begun[path]


def _first_weights(model: str) -> Path | None:
    """Find the file that is hashed first, if *model* is a folder; a name of anything else is no error here."""
    with suppress(OSError, ValueError, RuntimeError):
        folder = data.user_path(model).resolve()
        if (folder / "config.json").is_file():
            single = folder / "model.safetensors"
            return single if single.is_file() else min(folder.glob("model-*.safetensors"), default=None)
    return None


def recognise(
    folder: Path, paths: Iterable[Path], known: Sequence[SourceFile], *, is_same_commit: bool = False
) -> tuple[SourceFile, ...] | None:
    """Say whether the files at *paths* are still what *known* says; give them as they are now, or None.

    What looks as it did is not read; what does not is hashed.  With *is_same_commit*, the files in *folder* are those
    of a commit that both have, and need not even be on this machine.

    Raises:
        InputError: if a file cannot be read.
    """
    rows = {row.name: row for row in known}
    found = []
    for path in paths:
        row = rows.pop(_name(folder, path), None)
        if row is None:
            return None
        if not (is_same_commit and path.is_relative_to(folder)) and not _looks_like(path, row):
            now = describe(folder, path)
            if now != row:
                return None
            row = now
        found.append(row)
    return None if rows else tuple(found)


def looks(roots: Iterable[Path]) -> list[tuple[str, int, tuple[int, ...]]] | None:
    """Return name, size and signature of every file at or under *roots*, hidden folders left out, and of the folders.

    It is None if one changed so lately that it may change unseen, or if there are too many.
    """
    found: list[tuple[str, int, tuple[int, ...]]] = []
    left = list(roots)
    while left:
        path = left.pop()
        try:
            signature, is_folder = _signature(path), path.is_dir()
            size = 0 if is_folder else path.stat().st_size
            left += [one for one in path.iterdir() if not one.name.startswith(".")] if is_folder else []
        except OSError:
            return None
        if signature is None or len(found) == _MOST_FILES:
            return None
        found.append((str(path.absolute()), size, signature))
    return sorted(found)


def describe(folder: Path, path: Path, stop: threading.Event | None = None) -> SourceFile:
    """Hash one file; *stop* breaks that off.

    Raises:
        InputError: if it cannot be read.
    """
    name = _name(folder, path)
    try:
        before = _signature(path)
        known = cached_digest(path)
        if known:
            return SourceFile(name, path.stat().st_size, known, "cache", before)
        size, digest = path.stat().st_size, _sha256(path, stop)
        return SourceFile(name, size, digest, "content", before if before == _signature(path) else None)
    except OSError as error:
        raise InputError(
            "a source file cannot be read", where=path, found=error.strerror or error, hint="is it still there?"
        ) from error


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"{path.parent.name}/{path.name}"


def _looks_like(path: Path, row: SourceFile) -> bool:
    try:
        return row.seen is not None and path.stat().st_size == row.size and _signature(path) == tuple(row.seen)
    except OSError:
        return False


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from its other states; None if it changed so lately that it may change unseen."""
    stat = path.stat()
    latest = max(stat.st_mtime_ns, stat.st_ctime_ns)
    if latest > time.time_ns() - _TICK_NS:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def _sha256(path: Path, stop: threading.Event | None) -> str:
    if path.stat().st_size >= _LARGE and ((found := _sha256_apart(path, stop)) or (stop and stop.is_set())):
        return found
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while (n := file.readinto(buffer)) and not (stop and stop.is_set()):
            sha256.update(buffer[:n])
    return sha256.hexdigest()


def _sha256_apart(path: Path, stop: threading.Event | None) -> str:
    """Let another process hash a file; "" if it did not, whatever the reason: who reads the file meets it, too."""
    command = [sys.executable, "-I", "-S", str(_HASHER), str(path), str(os.getpid())]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        while True:
            try:
                said, _ = child.communicate(timeout=_STOP_S)
                return said.decode().strip()
            except subprocess.TimeoutExpired:
                if stop and stop.is_set():
                    child.kill()
