"""Read the header of one safetensors file, strictly.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes, the little-endian length N of the header;
N bytes, a UTF-8 JSON object that starts with "{" and may end in spaces; then the data, which the tensors cover without
holes or overlaps up to the last byte of the file.  Bad files are input, not accidents: every rule has its message.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import json_type, parse_object, shorten
from pipeline.types import FileHead, SourceTensor

MAX_HEADER = 100_000_000  # the limit of the format's own library
MAX_TENSORS = 100_000
MAX_DIMS = 16
MAX_NAME = 1_000
MAX_ELEMENTS = 2**60

# Bits of one element.  Complex and sub-byte types are listed so that such files open and say what they hold.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_AGAIN = "download the file again"
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its tensors by name, in the order of their data, and free text."""

    path: Path
    tensors: dict[str, SourceTensor]
    metadata: dict[str, str]


def read_header(path: Path, head: FileHead | None = None) -> Header:
    """Read and check the header of *path*; of the data only the size is looked at.

    With *head*, at least the 8 bytes and the header that they announce, the file itself need not be there yet.

    Raises:
        FormatError: if the file breaks any rule of the format, naming the rule, what was expected and what is there.
        UnsupportedError: for an element type or a size that nothing here knows.
    """
    if head is not None:
        return _read(path, io.BytesIO(head.data), head.size)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would block, a folder has no bytes
            raise FormatError("is not a file", where=path, expected="a safetensors file")
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as e:
        raise FormatError(
            "cannot be read", where=path, found=e.strerror or e, hint="check that the file is there and readable"
        ) from e


def _read(path: Path, file: BinaryIO, size: int) -> Header:
    start = file.read(len(_LFS))
    if start == _LFS:
        raise FormatError(
            "is a Git LFS pointer, not the weights", where=path, found=f"{size:,} bytes", hint="run: git lfs pull"
        )
    if size < 8 + 2:
        raise FormatError(
            "is too short for a safetensors file",
            where=path,
            expected="at least 10 bytes",
            found=f"{size:,}",
            hint=_AGAIN,
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise FormatError(
            "is not a safetensors file: the header's length is impossible",
            where=f"{path}, bytes 0 to 8",
            expected=f"at most {MAX_HEADER:,}",
            found=f"{length:,}",
            hint=_AGAIN,
        )
    if 8 + length > size:
        raise _cut_short(path, "its header is not whole", 8 + length, size)
    file.seek(8)
    text = file.read(length)
    if len(text) != length:
        raise _cut_short(path, "its header is not whole", 8 + length, 8 + len(text))
    return _parse(path, text, size)


def _cut_short(path: Path, what: str, expected: int, found: int) -> FormatError:
    return FormatError(
        f"is cut short: {what}", where=path, expected=f"{expected:,} bytes", found=f"{found:,} bytes", hint=_AGAIN
    )


def _parse(path: Path, text: bytes, size: int) -> Header:
    where = f"{path}, header"
    if not text.startswith(b"{"):
        raise FormatError(
            "does not start as JSON object", where=where, expected="'{'", found=repr(text[:1]), hint=_AGAIN
        )
    table = parse_object(text, where=where)
    metadata = _metadata(table.pop("__metadata__", {}), where)
    if len(table) > MAX_TENSORS:
        raise UnsupportedError(
            "has too many tensors", where=where, expected=f"at most {MAX_TENSORS:,}", found=f"{len(table):,}"
        )
    base = 8 + len(text)
    tensors = [_tensor(path, base, name, row) for name, row in table.items()]
    tensors.sort(key=lambda t: (t.offset, t.n_bytes, t.name))
    _check_cover(path, tensors, base, size)
    return Header(path, {t.name: t for t in tensors}, metadata)


def _metadata(value: object, where: str) -> dict[str, str]:
    place = f"{where}, __metadata__"
    if not isinstance(value, dict):
        raise FormatError("is not an object", where=place, expected="texts by name", found=json_type(value))
    for key, text in value.items():
        if not isinstance(text, str):
            raise FormatError(
                "holds something else than text",
                where=f"{place}, {shorten(key)}",
                expected="a string",
                found=json_type(text),
            )
    return value


def check_name(name: str, where: object) -> None:
    """Refuse a tensor name that is empty, very long, or has characters that cannot be printed.

    Raises:
        FormatError: for such a name.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise FormatError(
            "a tensor has an impossible name",
            where=where,
            expected=f"1 to {MAX_NAME:,} printable characters",
            found=shorten(name),
        )


def _tensor(path: Path, base: int, name: str, row: Any) -> SourceTensor:
    check_name(name, f"{path}, header")
    where = f"{path}, header, tensor {name}"
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(row, dict) or row.keys() != keys:
        found = ", ".join(shorten(k, 20) for k in list(row)[:6]) if isinstance(row, dict) else json_type(row)
        raise FormatError(
            "is not described as a tensor is", where=where, expected=f"{', '.join(sorted(keys))}", found=found
        )
    bits = _bits(row["dtype"], where)
    shape = _shape(row["shape"], where)
    begin, end = _span(row["data_offsets"], where)
    n_bits = bits
    for d in shape:
        n_bits *= d
    if (end - begin) * 8 != n_bits:
        raise FormatError(
            "its size does not fit its shape",
            where=where,
            expected=f"{-(-n_bits // 8):,} bytes for {row['dtype']} {list(shape)}",
            found=f"{end - begin:,} bytes (data_offsets {begin} to {end})",
            hint=_AGAIN,
        )
    return SourceTensor(name, row["dtype"], shape, path, base + begin, end - begin)


def _bits(dtype: object, where: str) -> int:
    if not isinstance(dtype, str):
        raise FormatError("its dtype is not a name", where=where, expected="a string", found=json_type(dtype))
    if dtype not in DTYPE_BITS:
        raise UnsupportedError(
            f"has the unknown type {shorten(dtype, 20)}", where=where, expected=f"one of {', '.join(DTYPE_BITS)}"
        )
    return DTYPE_BITS[dtype]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS  # type(), because True is an int


def _shape(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMS or not all(_is_size(d) for d in value):
        raise FormatError(
            "its shape is impossible",
            where=where,
            expected=f"at most {MAX_DIMS} integers from 0 to 2**60",
            found=shorten(str(value[:MAX_DIMS] if isinstance(value, list) else json_type(value))),
        )
    n = 1
    for d in value:
        n *= d
    if n > MAX_ELEMENTS:
        raise FormatError("its shape is impossible", where=where, expected="at most 2**60 elements", found=f"{value}")
    return tuple(value)


def _span(value: object, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_size(d) for d in value) or value[0] > value[1]:
        raise FormatError(
            "its data_offsets are impossible",
            where=where,
            expected="[begin, end] with 0 <= begin <= end",
            found=shorten(str(value[:3] if isinstance(value, list) else json_type(value))),
        )
    return value[0], value[1]


def _check_cover(path: Path, tensors: list[SourceTensor], base: int, size: int) -> None:
    """Check that *tensors*, in order of offset, cover the bytes from *base* to *size* exactly once."""
    at, before = base, None
    for t in tensors:
        if t.offset != at:
            what = "leaves a hole before it" if t.offset > at else f"overlaps {before}"
            raise FormatError(
                f"its data {what}",
                where=f"{path}, header, tensor {t.name}",
                expected=f"data_offsets from {at - base}",
                found=f"{t.offset - base}",
                hint=_AGAIN,
            )
        at, before = t.offset + t.n_bytes, t.name
    if size < at:
        missing = next(t.name for t in tensors if t.offset + t.n_bytes > size)
        raise _cut_short(path, f"{missing} is not whole", at, size)
    if size > at:
        raise FormatError(
            "has bytes that belong to no tensor",
            where=path,
            expected=f"{at:,} bytes",
            found=f"{size:,} bytes",
            hint=_AGAIN,
        )
