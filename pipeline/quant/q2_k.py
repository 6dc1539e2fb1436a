"""Q2_K: super-blocks of 256 elements of 2 bits, 16 sub-blocks with 4-bit scales and minimums."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType, Weights
from pipeline.quant._k_affine import (
    SUPER_BLOCK,
    TILE_BLOCKS,
    Format,
    load_two_values,
    quantize_super_blocks,
    store_two_values,
)
from pipeline.quant._kernels import fp16_to_fp32
from pipeline.quant._search import Candidates

_BLOCK: Final = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<u2"), ("dmin", "<u2")])


def _magnitudes(x: F32, out: F32) -> None:
    """Write the weights of `quantize_row_q2_K_ref`."""
    np.abs(x, out=out)


def _store(ls: U8, lm: U8, out: Array) -> tuple[U8, U8]:
    """Write scales and minimums, (16, n) each; what does not fit 4 bits runs into the other half, as in C."""
    both = ls | (lm << np.uint8(4))
    out[...] = both.T
    return both & np.uint8(15), both >> np.uint8(4)


_PLAN: Final = Candidates(first=-0.5, delta=0.1, n_steps=15, n_max=3, use_mad=True)
_FORMAT: Final = Format(16, 15, _PLAN, _magnitudes, 1, _store)


class _Type(BlockType):
    name = "Q2_K"
    id = 10
    block_size = SUPER_BLOCK
    type_size = _BLOCK.itemsize
    half_scales = (80, 82)
    tile_blocks = TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q2_K_ref`."""
        y = out.view(_BLOCK)[:, 0]
        store_two_values(quantize_super_blocks(x, y, _FORMAT), y["qs"])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q2_K_impl`."""
        y = out.view(_BLOCK)[:, 0]
        store_two_values(quantize_super_blocks(x, y, _FORMAT, weights.importance), y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q2_K`."""
        x = data.view(_BLOCK)[:, 0]
        scale = fp16_to_fp32(x["d"])[:, None] * (x["scales"] & np.uint8(15))
        minimum = fp16_to_fp32(x["dmin"])[:, None] * (x["scales"] >> np.uint8(4))
        values = out.reshape(-1, 16, 16)
        np.multiply(load_two_values(x["qs"]).reshape(-1, 16, 16), scale[:, :, None], out=values)
        values -= minimum[:, :, None]


TYPE = _Type()
