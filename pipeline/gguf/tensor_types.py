"""Names, ids and block sizes of ggml's tensor types: the one place that knows the table.

They are `enum ggml_type` (ggml.h) and the block sizes of ggml's type traits, with which the tests compare them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from pipeline.errors import FormatError


class TensorType(NamedTuple):
    """One tensor type: a block holds *block* elements in *n_bytes* bytes (1 element for plain types)."""

    name: str
    id: int
    block: int
    n_bytes: int


_ROWS = tuple(
    TensorType(*row)
    for row in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q8_1", 9, 32, 36),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66),
        ("IQ2_XS", 17, 256, 74),
        ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50),
        ("IQ4_NL", 20, 32, 18),
        ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82),
        ("IQ4_XS", 23, 256, 136),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17),
        ("NVFP4", 40, 64, 36),
        ("Q1_0", 41, 128, 18),
        ("Q2_0", 42, 64, 18),
    )
)


BY_NAME: Mapping[str, TensorType] = MappingProxyType({row.name: row for row in _ROWS})
BY_ID: Mapping[int, TensorType] = MappingProxyType({row.id: row for row in _ROWS})


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
