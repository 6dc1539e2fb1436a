"""Encode a GGUF header: metadata and tensor entries come in, the bytes before the first tensor go out.

The bytes are those of libggml's writer (`gguf_write_out` in gguf.cpp) for the same content.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from pipeline.errors import FormatError
from pipeline.gguf._layout import (
    ALIGNMENT_KEY,
    CODES,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_NAME_BYTES,
    VERSION,
)
from pipeline.gguf.tensor_types import BY_ID, padded, tensor_bytes, tensor_type
from pipeline.types import KV, PlannedTensor, ValueType


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header lists it: row-major *shape*, *offset* relative to the data section, in bytes."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def encode_header(metadata: Sequence[KV], tensors: Sequence[TensorEntry], alignment: int = DEFAULT_ALIGNMENT) -> bytes:
    """Encode a GGUF v3 little-endian header, padded with zeros to *alignment*.

    Its length is the absolute offset of the data section.  Outer dimensions of 1 are left out, as libggml does.

    Raises:
        FormatError: if a value does not fit its type, a name repeats, or an offset is not where libggml expects it.
    """
    _check_alignment(metadata, alignment)
    _check_unique("key", [kv.key for kv in metadata])
    _check_unique("tensor name", [t.name for t in tensors])
    out = bytearray(MAGIC)
    out += struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for kv in metadata:
        out += _encode_kv(kv)
    offset = 0
    for tensor in tensors:
        out += _encode_tensor(tensor, offset)
        offset += padded(tensor_bytes(BY_ID[tensor.type_id].name, tensor.shape), alignment)
    return bytes(out.ljust(padded(len(out), alignment), b"\0"))


def encode_plan_header(metadata: Sequence[KV], tensors: Sequence[PlannedTensor]) -> bytes:
    """Encode the header of planned tensors; its length is the plan's *data_start*.

    Raises:
        FormatError: as `encode_header`, or if a type is unknown.
    """
    entries = [TensorEntry(t.name, t.shape, tensor_type(t.type).id, t.offset) for t in tensors]
    return encode_header(metadata, entries, alignment_of(metadata))


def alignment_of(metadata: Sequence[KV]) -> int:
    """Return the alignment that *metadata* states, 32 where it does not.

    Raises:
        FormatError: if general.alignment is not a uint32 power of two.
    """
    for kv in metadata:
        if kv.key == ALIGNMENT_KEY:
            power = kv.type is ValueType.UINT32 and kv.value > 0 and kv.value & (kv.value - 1) == 0
            if not power:
                raise FormatError(
                    f"{ALIGNMENT_KEY} is not usable",
                    expected="a power of two as uint32",
                    found=f"{kv.value} as {kv.type.name.lower()}",
                )
            return int(kv.value)
    return DEFAULT_ALIGNMENT


def _check_alignment(metadata: Sequence[KV], alignment: int) -> None:
    stated = alignment_of(metadata)
    if stated != alignment:
        raise FormatError("the metadata states another alignment", expected=alignment, found=stated)


def _check_unique(kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FormatError(f"two entries have the same {kind}", where=name)
        seen.add(name)


def _encode_kv(kv: KV) -> bytes:
    if not kv.key:
        raise FormatError("a metadata key is empty", found=kv)
    try:
        head = _encode_string(kv.key) + struct.pack("<i", kv.type)
        if kv.type is ValueType.ARRAY:
            return head + _encode_array(kv)
        if kv.type is ValueType.STRING:
            return head + _encode_string(kv.value)
        return head + struct.pack("<" + CODES[kv.type], kv.value)
    except (struct.error, OverflowError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise FormatError(
            "a value does not fit its type",
            where=kv.key,
            expected=_type_text(kv),
            found=f"{str(kv.value)[:80]!r} ({error})",
        ) from error


def _type_text(kv: KV) -> str:
    name = kv.type.name.lower()
    return f"{name} of {kv.item.name.lower()}" if kv.item is not None else name


def _encode_array(kv: KV) -> bytes:
    if kv.item is None or kv.item is ValueType.ARRAY:
        raise FormatError("an array needs elements of a plain type", where=kv.key, found=_type_text(kv))
    head = struct.pack("<iQ", kv.item, len(kv.value))
    if kv.item is ValueType.STRING:
        return head + b"".join(map(_encode_string, kv.value))
    return head + struct.pack(f"<{len(kv.value)}{CODES[kv.item]}", *kv.value)


def _encode_string(text: str) -> bytes:
    # The reader keeps bytes that are not UTF-8 as surrogate escapes; here they become the same bytes again.
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data


def _encode_tensor(tensor: TensorEntry, offset: int) -> bytes:
    _check_tensor(tensor)
    if tensor.offset != offset:
        raise FormatError(
            "the tensor is not right behind the one before it", where=tensor.name, expected=offset, found=tensor.offset
        )
    ne = list(reversed(tensor.shape)) or [1]
    while len(ne) > 1 and ne[-1] == 1:  # ggml_n_dims
        ne.pop()
    return (
        _encode_string(tensor.name)
        + struct.pack(f"<I{len(ne)}q", len(ne), *ne)
        + struct.pack("<iQ", tensor.type_id, offset)
    )


def _check_tensor(tensor: TensorEntry) -> None:
    try:
        size = len(tensor.name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise FormatError("a tensor name is not Unicode text", where=repr(tensor.name)) from error
    if not 0 < size <= MAX_NAME_BYTES:
        raise FormatError(
            "the tensor name has an impossible length",
            where=tensor.name,
            expected=f"1 to {MAX_NAME_BYTES} bytes",
            found=size,
        )
    if len(tensor.shape) > MAX_DIMS or any(n < 1 for n in tensor.shape) or prod(tensor.shape) > MAX_ELEMENTS:
        raise FormatError(
            "the tensor's shape cannot be written",
            where=tensor.name,
            expected=f"at most {MAX_DIMS} positive dimensions",
            found=tensor.shape,
        )
    if tensor.type_id not in BY_ID:
        raise FormatError("unknown tensor type", where=tensor.name, found=tensor.type_id)
