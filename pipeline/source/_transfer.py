"""Bring one file of a repository into the cache: from where an earlier run stopped, checked, all or nothing.

The beginning of a file lies in the cache under the name of its whole content (`<etag>.incomplete`), so that what goes
on is always the same content, whatever commit or process began it.  What is on disk is hashed again, not trusted; a
file gets its own name only when all of it has the hash that the Hub announced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline import crash
from pipeline.errors import AccessError
from pipeline.source._cache import RepoCache
from pipeline.source._hub_errors import BrokenOffError
from pipeline.source._line import Found, Line, first_byte
from pipeline.source._manifest import RemoteFile

Tick = Callable[[int], None]

_CHUNK = 1 << 20


class Partial:
    """The beginning of the content *etag*, of *size* bytes if known, at *path*: open, and hashed as far as it goes.

    *at* is its length; *tick* is told how that changes.  Bytes are written at their places, not appended, so that two
    processes write the same even on a disk where locks do not work.
    """

    def __init__(self, path: Path, etag: str, size: int | None, tick: Tick) -> None:
        self.at = 0
        self._path, self._etag, self._size, self._tick = path, etag, size, tick
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._hash = content_hash(etag, size)
        if size is None or os.fstat(self._fd).st_size > size:
            self.restart()
        while piece := os.pread(self._fd, _CHUNK, self.at):
            self._count(piece)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def restart(self) -> None:
        """Throw away what is there."""
        os.ftruncate(self._fd, 0)
        self._tick(-self.at)
        self.at = 0
        self._hash = content_hash(self._etag, self._size)

    def append(self, piece: bytes) -> None:
        """Add the next bytes.

        Raises:
            BrokenOffError: if they are more than the file has.
        """
        if self._size is not None and self.at + len(piece) > self._size:
            self.restart()
            raise BrokenOffError(f"more than the {self._size:,} bytes that were announced")
        rest = memoryview(piece)
        while rest:
            try:
                n = os.pwrite(self._fd, rest, self.at)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            self._count(rest[:n])
            rest = rest[n:]
        crash.point("piece downloaded")

    def digest(self) -> str | None:
        """Return the hash of what is there in the form of its ETag; None if that is no hash."""
        return self._hash.hexdigest() if self._hash else None

    def publish(self, blob: Path) -> None:
        """Give it its name *blob*, once it is safe on the disk."""
        os.fsync(self._fd)
        crash.point("download synced")
        self._path.replace(blob)
        crash.point("download named")

    def _count(self, piece: bytes | memoryview) -> None:
        if self._hash:
            self._hash.update(piece)
        self.at += len(piece)
        self._tick(len(piece))


def content_hash(etag: str, size: int | None) -> Any:
    """Begin the hash that *etag* is of a content of *size* bytes: sha256, or that of a git blob; None if it is none."""
    if set(etag) - set("0123456789abcdef"):
        return None
    if len(etag) == 64:
        return hashlib.sha256()
    if len(etag) == 40 and size is not None:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def has_content(path: Path, etag: str) -> bool:
    """Say whether *path* holds the content *etag*, by reading all of it; True if the ETag is no hash."""
    with path.open("rb") as file:
        hashed = content_hash(etag, os.fstat(file.fileno()).st_size)
        while hashed and (piece := file.read(_CHUNK)):
            hashed.update(piece)
    return hashed is None or bool(hashed.hexdigest() == etag)


def is_sound(path: Path, size: int | None) -> bool:
    """Say whether there is a file at *path*, of *size* bytes if that is known."""
    try:
        return path.stat().st_size == size or size is None
    except FileNotFoundError:
        return False


def fetch_file(
    line: Line, cache: RepoCache, commit: str, file: RemoteFile, tick: Tick, waiting: Callable[[], None]
) -> None:
    """Bring *file* of *commit* into *cache*, whole and checked.

    *tick* is told of bytes as they come (and, as a negative number, of those that have to come again); *waiting* is
    called if another process downloads the same content.

    Raises:
        AccessError: if what comes is not what was announced.
        StoppedError: if *line* was hung up.
        Exception: whatever the client raises, after as many tries as the patience of *line* allows.
    """
    if file.etag and is_sound(cache.blob(file.etag), file.size):
        cache.point(commit, file.name, file.etag)  # another commit has the same content
        return
    found = line.insist(lambda: line.find(commit, file))
    cache.prepare()
    with cache.locked(found.etag, line.stop, waiting) as has_waited:
        if not is_sound(cache.blob(found.etag), found.size):
            if has_waited:
                found = line.insist(lambda: line.find(commit, file))  # addresses expire
            with Partial(cache.partial(found.etag), found.etag, found.size, tick) as partial:
                _complete(line, commit, file, found, partial)
                partial.publish(cache.blob(found.etag))
        cache.point(commit, file.name, found.etag)


def _complete(line: Line, commit: str, file: RemoteFile, found: Found, partial: Partial) -> None:
    """Bring *partial* to the end; if an earlier run began it and its hash is wrong then, once more from the start."""
    while True:
        is_from_here = partial.at == 0
        _receive_all(line, commit, file, found, partial)
        digest = partial.digest()
        if digest in (None, found.etag):
            return
        partial.restart()
        if is_from_here:
            raise AccessError(
                "what arrived is not what the Hub announced",
                where=f"{line.repo}@{commit}, {file.name}",
                expected=f"{'sha256' if len(found.etag) == 64 else 'git blob'} {found.etag}",
                found=digest,
                hint="run the command again; if it stays, a proxy or a mirror (HF_ENDPOINT) changes files on the way",
            )


def _receive_all(line: Line, commit: str, file: RemoteFile, found: Found, partial: Partial) -> None:
    """Ask until *partial* has all bytes; each time for the address too, as addresses expire."""
    tries = line.tries()
    while partial.at != found.size:
        before = partial.at
        try:
            _receive(line, found, partial)
            return
        except Exception as error:
            if partial.at > before:
                tries.got_ahead()
            if _is_bad_range(error):
                partial.restart()
                tries.again(BrokenOffError(f"the server has no bytes from {before:,} on"))
            else:
                tries.again(error)
        now = line.insist(lambda: line.find(commit, file))
        if (now.etag, now.size) != (found.etag, found.size):
            raise BrokenOffError(f"{file.name} changed on the Hub meanwhile: {found.etag} became {now.etag}")
        found = now


def _receive(line: Line, found: Found, partial: Partial) -> None:
    """Make one request for what *partial* lacks, and add what comes.

    Raises:
        BrokenOffError: if that is not all, or not the right part.
    """
    start = 0 if found.size is None else partial.at
    with line.body(found, start) as answer:
        try:
            first = first_byte(answer, start, found.size)
        except BrokenOffError:
            partial.restart()  # this server cannot go on; the next try asks for all
            raise
        if first != partial.at:
            partial.restart()
        for piece in line.pieces(answer):
            partial.append(piece)
    if found.size is not None and partial.at != found.size:
        raise BrokenOffError(f"ended after {partial.at:,} of {found.size:,} bytes")


def _is_bad_range(error: Exception) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) == 416
