"""What a model was made of: the digests of its source files, taken while other work goes on.

A large file in the Hugging Face cache is named by its content's sha256; that name is taken as it stands, as the client
does.  All other files are read and hashed.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import InputError
from pipeline.types import PlannedTensor

# What a GGUF is made of beside the weights, in the folder of a checkpoint.
_TEXTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "additional_chat_templates/*.jinja")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file that the model was made of.

    *name* is relative to the checkpoint's folder; of another file it has the name of its folder.  *size* is in bytes,
    *sha256* 64 hex digits.  *by* is "content" where the file was hashed, "cache" where the Hugging Face cache has it
    under that name.
    """

    name: str
    size: int
    sha256: str
    by: str


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
        inside = path.is_relative_to(self._folder)
        name = path.relative_to(self._folder).as_posix() if inside else f"{path.parent.name}/{path.name}"
        try:
            known = cached_digest(path)
            if known:
                return SourceFile(name, path.stat().st_size, known, "cache")
            return SourceFile(name, path.stat().st_size, self._sha256(path), "content")
        except OSError as error:
            raise InputError(
                "a source file cannot be read", where=path, found=error.strerror or error, hint="is it still there?"
            ) from error

    def _sha256(self, path: Path) -> str:
        sha256, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        with path.open("rb", buffering=0) as file:
            while (n := file.readinto(buffer)) and not self._stop.is_set():
                sha256.update(buffer[:n])
        return sha256.hexdigest()
