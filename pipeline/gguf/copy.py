"""Copy a GGUF as it is: the same bytes, hashed on the way, whole under its name or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import AccessError, FormatError
from pipeline.types import Blob

_CHUNK = 4 << 20


def copy_file(source: Path, target: Path, n_bytes: int, progress: Callable[[int, int], None]) -> Blob:
    """Copy *source*, which has *n_bytes*, to *target* and return its digest.

    *progress* is called with the bytes done and the bytes in all.

    Raises:
        FormatError: if *source* has another size now.
        AccessError: if a file cannot be read or written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    sha256, done = hashlib.sha256(), 0
    try:
        with source.open("rb") as reading, temporary.open("xb") as writing:
            while chunk := reading.read(_CHUNK):
                sha256.update(chunk)
                writing.write(chunk)
                done += len(chunk)
                progress(done, n_bytes)
            writing.flush()
            os.fsync(writing.fileno())
        if done != n_bytes:
            raise FormatError(
                "the file changed after its header was read",
                where=source,
                expected=f"{n_bytes:,} bytes",
                found=f"{done:,} bytes",
                hint="run again",
            )
        temporary.replace(target)
    except OSError as error:
        raise AccessError("the file cannot be copied", where=source, found=error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return Blob(f"sha256:{sha256.hexdigest()}", done)
