"""The little of protobuf's wire format that a SentencePiece model needs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | bytes

MAX_FIELDS = 1 << 17  # of one message: lists of control symbols are the longest


def fields(data: bytes, limit: int = MAX_FIELDS) -> Iterator[tuple[int, Value]]:
    """Give the fields of one message as (number, value).

    Values are the unsigned integer of a varint or of 4 or 8 fixed bytes (little-endian), or the bytes of a string or
    message.  See protobuf.dev, "Encoding".

    Raises:
        ValueError: if *data* is no message, or has more than *limit* fields.
    """
    at = 0
    while at < len(data):
        limit -= 1
        if limit < 0:
            raise ValueError("more fields than any model has")
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Value
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 5):
            value, at = _fixed(data, at, 8 if wire == 1 else 4)
        elif wire == 2:
            n_bytes, at = _varint(data, at)
            value, at = _take(data, at, n_bytes)
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}")
        yield number, value


def as_float(value: Value) -> float:
    """Read 4 fixed bytes as a float32."""
    if not isinstance(value, int) or value >= 1 << 32:
        raise ValueError("a float is no fixed32")
    number: float = struct.unpack("<f", struct.pack("<I", value))[0]
    return number


def as_int(value: Value) -> int:
    """Read a varint as a signed 32-bit integer (a negative one has 64 bits)."""
    if not isinstance(value, int):
        raise ValueError("an integer is no varint")
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def as_bytes(value: Value) -> bytes:
    """Read a string or a message."""
    if not isinstance(value, bytes):
        raise ValueError("a message is no length-delimited field")
    return value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"varint does not end at byte {at}")


def _fixed(data: bytes, at: int, n_bytes: int) -> tuple[int, int]:
    value, at = _take(data, at, n_bytes)
    return int.from_bytes(value, "little"), at


def _take(data: bytes, at: int, n_bytes: int) -> tuple[bytes, int]:
    if n_bytes > len(data) - at:
        raise ValueError(f"field of {n_bytes} bytes at byte {at} is cut off")
    return data[at : at + n_bytes], at + n_bytes
