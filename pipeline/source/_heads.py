"""The first bytes of a safetensors file, its header, without the rest: enough for a plan."""

from __future__ import annotations

import functools
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

from pipeline.source._cache import RepoCache
from pipeline.source._hub_errors import BrokenOffError
from pipeline.source._line import Found, Line, first_byte
from pipeline.source._manifest import RemoteFile
from pipeline.source._retry import StoppedError
from pipeline.source._transfer import is_sound
from pipeline.types import FileHead

_FIRST = 1 << 17  # bytes; most headers are shorter, so one request gets them
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library


def fetch_head(line: Line, cache: RepoCache, commit: str, file: RemoteFile) -> FileHead:
    """Fetch the header of *file*, a safetensors file that is not in *cache*: 8 bytes, and as many as they say.

    What came before, of this or of the whole file, is taken from the cache, and what comes now is left there as the
    beginning of the file, so that no byte comes twice.

    Raises:
        StoppedError: if *line* was hung up.
        Exception: whatever the client raises, after as many tries as the patience of *line* allows.
    """
    if file.etag and file.size and (begun := _begun(cache.partial(file.etag), file.size)):
        return FileHead(begun, file.size)
    found = line.insist(lambda: line.find(commit, file))
    size = found.size
    if size is None:
        raise BrokenOffError(f"the server does not say how large {file.name} is")
    data = b""
    while (start := len(data)) < (end := _needed(data, size)):
        data += line.insist(functools.partial(_range, line, found, start, end))
    _leave(cache, found, data)
    return FileHead(data[: _needed(data, size)], size)


def _needed(data: bytes, size: int) -> int:
    """Return how many bytes the header of a file of *size* bytes, which begins with *data*, takes.

    Before its length is known this is a guess; where the length cannot be, it is *data*: the strict reader will say so.
    """
    if len(data) < 8:
        return min(_FIRST, size)
    length = int.from_bytes(data[:8], "little")
    return 8 + length if length <= min(_MAX_HEADER, size - 8) else len(data)


def _begun(partial: Path, size: int) -> bytes:
    """Return the header from a file that is on its way; nothing if it is not all there, or damaged."""
    with suppress(OSError, ValueError, RecursionError), partial.open("rb") as file:
        data = file.read(8)
        data += file.read(_needed(data, size) - len(data))
        json.loads(data[8:])
        return data
    return b""


def _range(line: Line, found: Found, start: int, end: int) -> bytes:
    """Fetch the bytes from *start* up to but without *end*."""
    data = bytearray()
    with line.body(found, start, end) as answer:
        first = first_byte(answer, start, found.size)  # 0 where a server knows no ranges and sends all
        for piece in line.pieces(answer):
            data += piece
            if first + len(data) >= end:
                return bytes(data[start - first : end - first])
    raise BrokenOffError(f"ended after {first + len(data):,} of {end:,} bytes")


def _leave(cache: RepoCache, found: Found, data: bytes) -> None:
    """Leave *data* in the cache as the beginning of the file, unless that is there, at work there or not possible."""
    busy = threading.Event()
    busy.set()  # not to wait
    with suppress(OSError, StoppedError):
        cache.prepare()
        with cache.locked(found.etag, busy, lambda: None):
            if is_sound(cache.blob(found.etag), found.size):
                return  # another process has brought all of it meanwhile
            fd = os.open(cache.partial(found.etag), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(fd, data, 0)
            finally:
                os.close(fd)
