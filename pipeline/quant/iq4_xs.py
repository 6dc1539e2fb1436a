"""IQ4_XS: super-blocks of 256 elements as in IQ4_NL, 8 sub-blocks with 6-bit scales."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights
from pipeline.quant._blocks32 import store_nibbles
from pipeline.quant._k_affine import SUPER_BLOCK, TILE_BLOCKS
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._linear import first_largest
from pipeline.quant._nonlinear import best_index, reciprocal, search_scales, values_of

_BLOCK: Final = np.dtype([("d", "<u2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])
_HIGH_SHIFTS: Final = (2 * np.arange(8)).astype(np.uint16)


class _Type(BlockType):
    name = "IQ4_XS"
    id = 23
    block_size = SUPER_BLOCK
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_iq4_xs`."""
        _quantize(x, out, None)

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_iq4_xs` with quant_weights."""
        _quantize(x, out, weights)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_iq4_xs`."""
        x = data.view(_BLOCK)[:, 0]
        low = (x["scales_l"][:, :, None] >> np.array([0, 4], np.uint8)) & np.uint8(15)
        high = (x["scales_h"][:, None] >> _HIGH_SHIFTS) & np.uint16(3)
        ls = (low.reshape(-1, 8) | (high << np.uint16(4))).astype(np.float32) - np.float32(32)
        scale = fp16_to_fp32(x["d"])[:, None] * ls
        np.multiply(values_of(x["qs"].reshape(-1, 8, 16)), scale[:, :, None], out=out.reshape(-1, 8, 32))


def _quantize(x: F32, out: U8, weights: Weights | None) -> None:
    n, y = len(x), out.view(_BLOCK)[:, 0]
    elements, scales = search_scales(x, 8, weights)
    d = -first_largest(scales) / np.float32(32)
    y["d"] = fp16_bits(d)
    ls = np.clip(nearest_int(reciprocal(d) * scales), -32, 31)
    inverse = reciprocal(d * ls.astype(np.float32))
    store_nibbles(best_index(inverse * elements), y["qs"].reshape(n, 8, 16))
    stored = (ls + np.int32(32)).astype(np.uint16)
    y["scales_l"] = ((stored[0::2] & np.uint16(15)) | ((stored[1::2] & np.uint16(15)) << np.uint16(4))).T
    y["scales_h"] = np.bitwise_or.reduce((stored >> np.uint16(4)) << _HIGH_SHIFTS[:, None], axis=0)


TYPE = _Type()
