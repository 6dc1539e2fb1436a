"""Read a GGUF header strictly: a path comes in, a checked `GgufFile` goes out; tensor data is read on request.

A file is input, not an accident: whatever libggml refuses (`gguf_init_from_reader` in gguf.cpp) is refused here, and
also tensors outside the file, bytes behind the last one, empty tensors, empty names, keys that are not UTF-8 and
booleans other than 0 and 1.  String values keep bytes that are not UTF-8 as surrogate escapes, so that they can be
written again unchanged.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, InputError
from pipeline.gguf._cursor import Cursor
from pipeline.gguf._layout import (
    ALIGNMENT_KEY,
    CODES,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_NAME_BYTES,
    READABLE_VERSIONS,
)
from pipeline.gguf.tensor_types import BY_ID, padded, tensor_bytes
from pipeline.types import KV, ValueType

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, one byte
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length, one letter, no dimensions, type, offset


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file: *shape* is row-major, *offset* is absolute, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Split:
    """What a part of a split model says: it is part *no* (from 0) of *count*, with *n_tensors* in all parts."""

    no: int
    count: int
    n_tensors: int | None


@dataclass(frozen=True)
class GgufFile:
    """A checked header.  *tensors* are in file order; *split* is None unless the file is one of several parts."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, KV]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    file_size: int
    split: Split | None
    identity: tuple[int, ...]  # of the file on disk when it was read

    def value(self, key: str, default: Any = None) -> Any:
        """Return the value under *key*, or *default*."""
        kv = self.metadata.get(key)
        return default if kv is None else kv.value

    def tensor(self, name: str) -> GgufTensor:
        """Return the tensor called *name*.

        Raises:
            FormatError: if the file has none.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise FormatError("the file has no such tensor", where=self.path, expected=name)

    def read_tensor_bytes(self, tensor: GgufTensor, start: int, out: Any) -> None:
        """Fill the writable buffer *out* with bytes of *tensor* from *start* on.  Threads may call this together.

        Raises:
            FormatError: if the range leaves the tensor, or the file is no longer the one whose header was read.
            InputError: if the file cannot be read.
        """
        buffer = memoryview(out).cast("B")
        if not 0 <= start <= start + len(buffer) <= tensor.n_bytes:
            raise FormatError(
                "a read leaves the tensor",
                where=f"{self.path}: {tensor.name}",
                expected=f"bytes 0 to {tensor.n_bytes}",
                found=f"bytes {start} to {start + len(buffer)}",
            )
        with _opened(self.path) as fd:
            if _identity(fd) != self.identity:
                raise FormatError("the file changed after its header was read", where=self.path, hint="run again")
            _read_exactly(self.path, fd, tensor.offset + start, buffer)


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of the GGUF file at *path*; tensor data stays unread.

    Raises:
        FormatError: if the file is not a valid GGUF file; says which byte, what was expected and what was found.
        InputError: if the file cannot be opened.
    """
    with _opened(path) as fd:
        identity = _identity(fd)
        cursor = Cursor(path, fd, os.fstat(fd).st_size)
        version = _read_version(cursor)
        n_tensors = cursor.count("tensors", limit=MAX_TENSORS, least_bytes=_LEAST_TENSOR_BYTES)
        n_keys = cursor.count("metadata keys", limit=MAX_KEYS, least_bytes=_LEAST_KEY_BYTES)
        metadata, places = _read_metadata(cursor, n_keys)
        alignment = _alignment(cursor, metadata, places)
        split = _split(cursor, metadata, places)
        listed = _read_tensors(cursor, n_tensors, alignment)
        data_start = padded(cursor.offset, alignment)
        _check_file_end(cursor, data_start, listed, alignment)
    tensors = tuple(replace(t, offset=data_start + t.offset) for t in listed)
    return GgufFile(path, version, alignment, metadata, tensors, data_start, cursor.size, split, identity)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open *path* for reading; a failing system call inside is an InputError."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not block
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError("not a regular file", where=path)
        yield fd
    except OSError as error:
        raise InputError("cannot read the file", where=path, found=error.strerror) from error
    finally:
        if fd >= 0:
            os.close(fd)


def _identity(fd: int) -> tuple[int, ...]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _read_exactly(path: Path, fd: int, offset: int, buffer: memoryview) -> None:
    while buffer:
        n = os.preadv(fd, [buffer], offset)
        if n == 0:
            raise FormatError("the file became shorter while it was read", where=f"{path}, byte {offset}")
        buffer, offset = buffer[n:], offset + n


def _read_version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        raise cursor.error("not a GGUF file", at=0, expected=MAGIC, found=magic)
    version = int(cursor.unpack("I", "the version"))
    if version and version & 0xFFFF == 0:
        raise cursor.error(
            "the file is big endian",
            at=4,
            expected="little endian",
            found=f"version {version:#010x}",
            hint="convert it with llama.cpp's gguf_convert_endian.py",
        )
    if version not in READABLE_VERSIONS:
        raise cursor.error(
            "unknown GGUF version",
            at=4,
            expected=" or ".join(map(str, READABLE_VERSIONS)),
            found=version,
            hint="get the model as a newer GGUF file" if version == 1 else None,
        )
    return version


def _read_metadata(cursor: Cursor, n_keys: int) -> tuple[dict[str, KV], dict[str, int]]:
    """Return the entries, and the byte at which each begins."""
    metadata: dict[str, KV] = {}
    places: dict[str, int] = {}
    for i in range(n_keys):
        at = cursor.offset
        key = cursor.text(f"metadata key {i}")
        if not key:
            raise cursor.error("a metadata key is empty", at=at)
        if key in metadata:
            raise cursor.error("duplicate metadata key", at=at, found=key)
        metadata[key], places[key] = _read_kv(cursor, key), at
    return metadata, places


def _read_kv(cursor: Cursor, key: str) -> KV:
    kind = _value_type(cursor, f"the type of {key}")
    if kind is ValueType.ARRAY:
        at = cursor.offset
        item = _value_type(cursor, f"the element type of {key}")
        if item is ValueType.ARRAY:
            raise cursor.error(f"{key} is an array of arrays", at=at, expected="elements of a plain type")
        if item is ValueType.STRING:
            return KV(key, kind, cursor.strings(key), item)
        values = _bools(cursor, key) if item is ValueType.BOOL else cursor.array(CODES[item], key)
        return KV(key, kind, values, item)
    if kind is ValueType.STRING:
        return KV(key, kind, cursor.raw_string(key).decode("utf-8", "surrogateescape"))
    if kind is ValueType.BOOL:
        return KV(key, kind, _bool(cursor, key))
    return KV(key, kind, cursor.unpack(CODES[kind], key))


def _value_type(cursor: Cursor, what: str) -> ValueType:
    at = cursor.offset
    found = cursor.unpack("i", what)
    try:
        return ValueType(found)
    except ValueError:
        raise cursor.error(f"{what} is unknown", at=at, expected="0 to 12", found=found) from None


def _bool(cursor: Cursor, key: str) -> bool:
    at = cursor.offset
    return _checked_bools(cursor, at, key, (cursor.unpack("B", key),))[0]


def _bools(cursor: Cursor, key: str) -> tuple[bool, ...]:
    at = cursor.offset
    return _checked_bools(cursor, at, key, cursor.array("B", key))


def _checked_bools(cursor: Cursor, at: int, key: str, values: Sequence[int]) -> tuple[bool, ...]:
    if values and max(values) > 1:
        raise cursor.error(f"{key} is not a truth value", at=at, expected="0 or 1", found=max(values))
    return tuple(map(bool, values))


def _alignment(cursor: Cursor, metadata: dict[str, KV], places: dict[str, int]) -> int:
    kv = metadata.get(ALIGNMENT_KEY)
    if kv is None:
        return DEFAULT_ALIGNMENT
    if kv.type is not ValueType.UINT32 or kv.value == 0 or kv.value & (kv.value - 1):
        raise cursor.error(
            f"{ALIGNMENT_KEY} is not usable",
            at=places[ALIGNMENT_KEY],
            expected="a power of two as uint32",
            found=f"{kv.value} as {kv.type.name.lower()}",
        )
    return int(kv.value)


def _read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> list[GgufTensor]:
    """Read the tensor list; offsets are still relative to the data section."""
    tensors: list[GgufTensor] = []
    names: set[str] = set()
    due = 0
    for i in range(n_tensors):
        at = cursor.offset
        name = cursor.text(f"the name of tensor {i}")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise cursor.error(
                f"the name of tensor {i} has an impossible length",
                at=at,
                expected=f"1 to {MAX_NAME_BYTES} bytes",
                found=f"{len(name.encode())} bytes",
            )
        if name in names:
            raise cursor.error("duplicate tensor name", at=at, found=name)
        names.add(name)
        tensor = _read_tensor(cursor, name, due)
        tensors.append(tensor)
        due += padded(tensor.n_bytes, alignment)
    return tensors


def _read_tensor(cursor: Cursor, name: str, due: int) -> GgufTensor:
    shape = _read_shape(cursor, name)
    at = cursor.offset
    type_id = cursor.unpack("i", f"the type of tensor {name}")
    if type_id not in BY_ID:
        raise cursor.error(f"tensor {name} has an unknown type", at=at, found=type_id)
    kind = BY_ID[type_id]
    if shape[-1] % kind.block:
        raise cursor.error(
            f"rows of tensor {name} are not whole {kind.name} blocks",
            at=at,
            expected=f"a multiple of {kind.block} elements",
            found=shape[-1],
        )
    at = cursor.offset
    offset = int(cursor.unpack("Q", f"the offset of tensor {name}"))
    if offset != due:
        raise cursor.error(
            f"tensor {name} is not right behind the one before it",
            at=at,
            expected=f"offset {due}",
            found=f"offset {offset}",
        )
    return GgufTensor(name, shape, kind.name, offset, tensor_bytes(kind.name, shape))


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    at = cursor.offset
    n_dims = int(cursor.unpack("I", f"the dimensions of tensor {name}"))
    if n_dims > MAX_DIMS:
        raise cursor.error(
            f"tensor {name} has too many dimensions", at=at, expected=f"at most {MAX_DIMS}", found=n_dims
        )
    ne = [int(cursor.unpack("q", f"the shape of tensor {name}")) for _ in range(n_dims)]
    if any(n < 1 for n in ne) or prod(ne) > MAX_ELEMENTS:
        raise cursor.error(
            f"tensor {name} has an impossible shape", at=at, expected="positive sizes with a 63-bit product", found=ne
        )
    return tuple(reversed(ne)) or (1,)  # no dimensions: one element


def _check_file_end(cursor: Cursor, data_start: int, tensors: list[GgufTensor], alignment: int) -> None:
    """Check that the file ends with the last tensor; padding behind it may be missing, as llama.cpp allows."""
    if not tensors:
        end, last = cursor.offset, "the header"
    else:
        end, last = data_start + tensors[-1].offset + tensors[-1].n_bytes, f"tensor {tensors[-1].name}"
    if cursor.size < end:
        outside = next((t for t in tensors if data_start + t.offset + t.n_bytes > cursor.size), None)
        raise cursor.error(
            f"tensor {outside.name if outside else last} is not whole in the file",
            at=cursor.size,
            expected=f"a file of {end} bytes",
            found=f"{cursor.size} bytes",
            hint="the file is cut off: download or write it again",
        )
    if cursor.size > padded(end, alignment):
        raise cursor.error(
            f"there are bytes behind {last}",
            at=padded(end, alignment),
            expected=f"a file of {padded(end, alignment)} bytes",
            found=f"{cursor.size} bytes",
            hint="the file was damaged, or a download was resumed wrongly: get it again",
        )


def _split(cursor: Cursor, metadata: dict[str, KV], places: dict[str, int]) -> Split | None:
    numbers: dict[str, int] = {}
    for key in ("split.count", "split.no", "split.tensors.count"):
        if key in metadata:
            if type(metadata[key].value) is not int:
                raise cursor.error(f"{key} is not a whole number", at=places[key], found=metadata[key].value)
            numbers[key] = metadata[key].value
    count, no = numbers.get("split.count", 0), numbers.get("split.no", -1)
    if count <= 1:
        return None
    if not 0 <= no < count:
        at = places.get("split.no", places["split.count"])
        raise cursor.error(
            "a part of a split model has an impossible number", at=at, expected=f"0 to {count - 1}", found=no
        )
    return Split(no, count, numbers.get("split.tensors.count"))
