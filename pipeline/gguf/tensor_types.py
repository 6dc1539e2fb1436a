"""Names, ids and block sizes of ggml's tensor types: the one place that knows the table.

The rows come from the `gguf` package; what its release lacks or has wrong, compared with the vendored ggml, is put
right here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from pipeline.errors import FormatError
from pipeline.gguf._constants import GGML_QUANT_SIZES, GGMLQuantizationType


class TensorType(NamedTuple):
    """One tensor type: a block holds *block* elements in *n_bytes* bytes (1 element for plain types)."""

    name: str
    id: int
    block: int
    n_bytes: int


def _rows() -> list[TensorType]:
    known = {t.name: TensorType(t.name, int(t), *GGML_QUANT_SIZES[t]) for t in GGMLQuantizationType}
    known["Q8_1"] = TensorType("Q8_1", 9, 32, 2 + 2 + 32)  # two float16, where the package counts two float32
    known.setdefault("Q2_0", TensorType("Q2_0", 42, 64, 2 + 16))  # block_q2_0: float16 scale, two bits each
    return list(known.values())


BY_NAME: Mapping[str, TensorType] = MappingProxyType({row.name: row for row in _rows()})
BY_ID: Mapping[int, TensorType] = MappingProxyType({row.id: row for row in _rows()})


def tensor_type(name: str) -> TensorType:
    """Return the type called *name*, such as "Q4_K".

    Raises:
        FormatError: if ggml has no such type.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        raise FormatError("unknown tensor type", expected=", ".join(BY_NAME), found=name) from None


def tensor_bytes(name: str, shape: Sequence[int]) -> int:
    """Return the size in bytes of a tensor of type *name* and row-major *shape* (`ggml_nbytes`).

    Raises:
        FormatError: if the type is unknown, or a row is not a whole number of blocks.
    """
    kind = tensor_type(name)
    n_cols = shape[-1] if shape else 1
    if n_cols % kind.block:
        raise FormatError(
            f"a row of a {name} tensor is not a whole number of blocks",
            expected=f"a multiple of {kind.block} elements",
            found=f"shape {tuple(shape)}",
        )
    return prod(shape) // kind.block * kind.n_bytes


def padded(n_bytes: int, alignment: int = 32) -> int:
    """Round *n_bytes* up to a multiple of *alignment* (`GGML_PAD`)."""
    return -(-n_bytes // alignment) * alignment
