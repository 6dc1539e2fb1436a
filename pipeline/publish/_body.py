"""A stretch of a file as the body of a request: hashed while it is sent, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.errors import AccessError, FormatError
from pipeline.types import Blob

_PIECE_BYTES = 1 << 20

Sent = Callable[[int], None]


class Body:
    """The bytes of *file* from *start* up to but without *stop*; a stream to requests, with a Content-Length.

    *state* is the sha256 of what comes before, and afterwards of this too.  Where the stretch ends at the end of
    *blob*, its last bytes are given out only if the whole has the digest that it should have: a server that got less
    than was announced keeps nothing.  *sent* is told the offset in the file that was reached.
    """

    def __init__(
        self, file: BinaryIO, blob: Blob, start: int, stop: int, state: hashlib._Hash, sent: Sent = lambda _: None
    ) -> None:
        self._file, self._blob, self._at, self._stop, self._sent = file, blob, start, stop, sent
        self._length = stop - start
        self.state = state
        file.seek(start)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_PIECE_BYTES), b"")

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, *size* at most.

        Raises:
            FormatError: if the file is not what its digest says.
            AccessError: if it can not be read.
        """
        wanted = self._stop - self._at if size < 0 else min(size, self._stop - self._at)
        if not wanted:
            return b""
        try:
            data = self._file.read(wanted)
        except OSError as exc:  # the HTTP client would take it for a broken connection
            raise AccessError("the file can not be read", where=_name(self._file), found=str(exc)) from exc
        self._at += len(data)
        self.state.update(data)
        if not data or (self._at == self._blob.size and self._digest() != self._blob.digest):
            raise changed(_name(self._file), self._blob, self._digest())
        self._sent(self._at)
        return data

    def _digest(self) -> str:
        return f"sha256:{self.state.hexdigest()}"


def changed(where: str, blob: Blob, found: object) -> FormatError:
    """Say that a file is not, or not any more, what it was when it was hashed."""
    return FormatError(
        "a file is not what its digest says",
        where=where,
        expected=f"{blob.digest}, {blob.size} bytes",
        found=found,
        hint="something changed it while it was published; publish again",
    )


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "a text of the model"))
