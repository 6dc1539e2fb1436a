"""Read a header front to back: bounded reads, and errors that name file and byte.

Nothing is allocated because a file says so: a length is compared with what the file still holds before it is read,
and a header may not be longer than `MAX_HEADER_BYTES` or hold more than `MAX_VALUES` array elements.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 27  # the largest known headers (256k tokens and their merges) stay below 32 MiB
MAX_VALUES = 1 << 22  # likewise: about 1.3 million values


class Cursor:
    """A position in the header of an open file of *size* bytes."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self.size = size
        self._fd = fd
        self._buffer = b""
        self._base = 0  # absolute offset of the buffer's first byte
        self._at = 0  # position in the buffer
        self._values_left = MAX_VALUES

    @property
    def offset(self) -> int:
        """Absolute offset of the next byte."""
        return self._base + self._at

    @property
    def left(self) -> int:
        """Number of bytes up to the end of the file."""
        return self.size - self.offset

    def error(
        self,
        what: str,
        *,
        at: int | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> FormatError:
        """Make the error for the byte *at*, or for the next byte."""
        where = f"{self.path}, byte {self.offset if at is None else at}"
        return FormatError(what, where=where, expected=expected, found=found, hint=hint)

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next *n_bytes*; *what* says what they are.

        Raises:
            FormatError: if the file has not that many, or the header grows beyond `MAX_HEADER_BYTES`.
        """
        self._fill(n_bytes, what)
        start = self._at
        self._at += n_bytes
        return self._buffer[start : self._at]

    def unpack(self, code: str, what: str) -> Any:
        """Return the next value of struct type *code*, little endian."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, what: str, *, limit: int, least_bytes: int) -> int:
        """Return the next uint64, a number of things of at least *least_bytes* each.

        Raises:
            FormatError: if it is above *limit*, or the rest of the file cannot hold that many.
        """
        at = self.offset
        n = int(self.unpack("Q", f"the number of {what}"))
        if n > limit or n * least_bytes > self.left:
            room = min(limit, self.left // least_bytes)
            raise self.error(f"impossible number of {what}", at=at, expected=f"at most {room}", found=n)
        return n

    def raw_string(self, what: str) -> bytes:
        """Return the next string's bytes."""
        at = self.offset
        n_bytes = int(self.unpack("Q", f"the length of {what}"))
        if n_bytes > self.left:
            raise self.error(
                f"{what} is longer than the file", at=at, expected=f"at most {self.left} bytes", found=n_bytes
            )
        return self.take(n_bytes, what)

    def text(self, what: str) -> str:
        """Return the next string, which must be UTF-8."""
        at = self.offset
        data = self.raw_string(what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", at=at, found=data[:64]) from error

    def array(self, code: str, what: str) -> tuple[Any, ...]:
        """Return the next array of fixed-size values of struct type *code*."""
        width = struct.calcsize("<" + code)
        n = self._array_length(what, width)
        return struct.unpack(f"<{n}{code}", self.take(n * width, what))

    def strings(self, what: str) -> tuple[str, ...]:
        """Return the next array of strings; bytes that are not UTF-8 stay as surrogate escapes."""
        n = self._array_length(what, 8)
        found: list[str] = []
        while len(found) < n:
            self._buffered_strings(n, found)
            if len(found) < n:  # the next one crosses the end of the buffer, or of the file
                found.append(self.raw_string(f"element {len(found)} of {what}").decode("utf-8", "surrogateescape"))
        return tuple(found)

    def _array_length(self, what: str, least_bytes: int) -> int:
        n = self.count(f"elements of {what}", limit=self._values_left, least_bytes=least_bytes)
        self._values_left -= n
        return n

    def _buffered_strings(self, n: int, found: list[str]) -> None:
        """Append strings to *found* up to *n*, as long as they lie whole in the buffer; this is the fast path."""
        buffer, at, end = self._buffer, self._at, len(self._buffer)
        while len(found) < n and at + 8 <= end:
            start = at + 8
            stop = start + int.from_bytes(buffer[at:start], "little")
            if stop > end:
                break
            found.append(buffer[start:stop].decode("utf-8", "surrogateescape"))
            at = stop
        self._at = at

    def _fill(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.left:
            raise self.error(
                f"the file ends in the middle of {what}",
                expected=f"{n_bytes} bytes",
                found=f"{self.left} bytes",
                hint="the file is cut off: download or write it again",
            )
        if self.offset + n_bytes > MAX_HEADER_BYTES:
            raise self.error("the header is too large", expected=f"at most {MAX_HEADER_BYTES} bytes", found=what)
        if self._at + n_bytes <= len(self._buffer):
            return
        pieces = [self._buffer[self._at :]]
        held, wanted = len(pieces[0]), max(n_bytes, min(CHUNK_BYTES, self.left))
        while held < wanted:
            piece = os.pread(self._fd, wanted - held, self.offset + held)
            if not piece:
                raise self.error("the file became shorter while it was read")
            pieces.append(piece)
            held += len(piece)
        self._buffer, self._base, self._at = b"".join(pieces), self.offset, 0
