"""Q5_K: super-blocks of 256 elements of 5 bits, 8 sub-blocks with 6-bit scales and minimums; the fifth bits apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType, Weights
from pipeline.quant._k_affine import (
    SUPER_BLOCK,
    TILE_BLOCKS,
    Format,
    dequantize_super_blocks,
    quantize_super_blocks,
    six_bit_weights,
    store_six_bits,
)
from pipeline.quant._search import Candidates

_BLOCK: Final = np.dtype([("d", "<u2"), ("dmin", "<u2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_FORMAT: Final = Format(
    32, 63, Candidates(first=-0.5, delta=0.1, n_steps=15, n_max=31), six_bit_weights, 2, store_six_bits
)
_BIT: Final = (1 << np.arange(8)).astype(np.uint8)


class _Type(BlockType):
    name = "Q5_K"
    id = 13
    block_size = SUPER_BLOCK
    type_size = _BLOCK.itemsize
    half_scales = (0, 2)
    tile_blocks = TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q5_K_ref`."""
        y = out.view(_BLOCK)[:, 0]
        _pack(quantize_super_blocks(x, y, _FORMAT), y)

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q5_K_impl`."""
        y = out.view(_BLOCK)[:, 0]
        _pack(quantize_super_blocks(x, y, _FORMAT, weights.importance), y)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q5_K`."""
        x = data.view(_BLOCK)[:, 0]
        pairs = x["qs"].reshape(-1, 4, 1, 32)
        q = np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=2).reshape(-1, 8, 32)
        q |= ((x["qh"][:, None, :] & _BIT[:, None]) != 0) * np.uint8(16)
        dequantize_super_blocks(x, q, out)


def _pack(q: U8, y: Array) -> None:
    """Write the quants *q*, (32, 8, n), to the blocks *y*, (n,)."""
    # Byte i of qh holds the fifth bit of element i of each sub-block, bit j that of sub-block j.
    fifth = (q > np.uint8(15)).view(np.uint8) * _BIT[:, None]
    y["qh"] = np.bitwise_or.reduce(fifth, axis=1).T
    # Two sub-blocks share 32 bytes: the even one in the low halves, the odd one in the high halves.
    pairs = q[:, 1::2] * np.uint8(16)
    pairs |= q[:, 0::2] & np.uint8(15)
    y["qs"].reshape(-1, 4, 32)[...] = pairs.transpose(2, 1, 0)


TYPE = _Type()
