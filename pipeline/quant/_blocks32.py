"""The types with blocks of 32 elements and one scale, quantized with an importance matrix: searches as in the K types.

A tile of n blocks lies `(32, n)`, as in `_search`.
"""

from __future__ import annotations

import numpy as np

from pipeline.quant._base import F32, U8, Array, Take, Weights, workspace
from pipeline.quant._linear import largest_of, make_qx_quants
from pipeline.quant._search import (
    Range,
    SearchBuffers,
    first_zeros,
    make_qkx_quants,
    searched_quants,
    with_importance,
)


class _Buffers:
    """Scratch of one tile: the elements, and what the search needs."""

    def __init__(self, take: Take, n: int) -> None:
        self.x: F32 = take((32, n), np.float32)
        self.search = SearchBuffers(take, 32, n)


def _load(x: F32, weights: Weights) -> tuple[_Buffers, Range]:
    buf = workspace.get(_Buffers, len(x))
    buf.search.lay_out(x, 32, buf.x)
    buf.search.lay_out(weights.importance, 32, buf.search.w)
    buf.search.weigh(buf.x, weights.row_mean)
    return buf, Range(np.minimum.reduce(buf.x, axis=0), np.maximum.reduce(buf.x, axis=0))


def signed_quants(x: F32, weights: Weights, n_max: int) -> tuple[F32, U8]:
    """Mirror the common part of `quantize_row_q4_0_impl` and `_q5_0_impl`: return d, (n,), and L, (32, n)."""
    buf, bounds = _load(x, weights)
    found = make_qx_quants(buf.x, largest_of(buf.x, bounds), n_max, buf.search)
    return found.scale, found.quants(buf.x, np.arange(len(x)), n_max)


def affine_quants(x: F32, weights: Weights, n_max: int) -> tuple[F32, F32, U8]:
    """Mirror the common part of `quantize_row_q4_1_impl` and `_q5_1_impl`: return d and m, (n,), and L, (32, n)."""
    buf, bounds = _load(x, weights)
    first_zeros(x, bounds.low)
    found = make_qkx_quants(buf.x, bounds, with_importance(n_max), buf.search)
    return found.scale, found.min, searched_quants(buf.x, found, n_max)


def store_nibbles(L: U8, out: Array) -> None:
    """Write the low 4 bits of *L*, (32, ..., n): element j beside element j + 16, into *out*, (n, ..., 16)."""
    low = np.uint8(15)
    out[...] = ((L[:16] & low) | (L[16:] << np.uint8(4))).T


def store_fifth_bits(L: U8, out: Array) -> None:
    """Write bit 4 of element j of *L*, (32, n), as bit j of the 4 bytes of *out*, (n, 4)."""
    out[...] = np.packbits((L >> np.uint8(4)) & np.uint8(1), axis=0, bitorder="little").T
