"""Copy a GGUF as it is: the same bytes, hashed on the way, whole under its name or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import crash, whole
from pipeline.errors import AccessError, FormatError
from pipeline.gguf.writer import refused, reserve
from pipeline.types import Blob

_CHUNK = 4 << 20


def copy_file(source: Path, target: Path, n_bytes: int, progress: Callable[[int, int], None]) -> Blob:
    """Copy *source*, which has *n_bytes*, to *target* and return its digest.

    *progress* is called with the bytes done and the bytes in all.

    Raises:
        FormatError: if *source* has another size now.
        ResourceError: if the disk is full.
        AccessError: if a file cannot be read or written.
    """
    sha256, done = hashlib.sha256(), 0
    with refused(target, n_bytes), whole.beside(target) as (temporary, fd):
        reserve(fd, n_bytes)
        for chunk in _chunks(source):
            sha256.update(chunk)
            whole.write_all(fd, memoryview(chunk))
            done += len(chunk)
            progress(done, n_bytes)
            crash.point("chunk copied")
        if done != n_bytes:
            raise FormatError(
                "the file changed after its header was read",
                where=source,
                expected=f"{n_bytes:,} bytes",
                found=f"{done:,} bytes",
                hint="run again",
            )
        os.fsync(fd)
        crash.point("copy synced")
        temporary.replace(target)
        crash.point("copy named")
    return Blob(f"sha256:{sha256.hexdigest()}", done)


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise AccessError("the file cannot be copied", where=source, found=error.strerror or error) from error
