"""Q4_1: 32 elements of 4 bits with a scale and a minimum."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights, workspace
from pipeline.quant._blocks32 import affine_quants, store_nibbles
from pipeline.quant._groups import TILE_BLOCKS, GroupBuffers, affine_blocks, pack_nibbles, unpack_nibbles
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("m", "<u2"), ("qs", "u1", 16)])
_HIGHEST: Final = np.full(TILE_BLOCKS * 4, 15, np.uint8)


class _Type(BlockType):
    name = "Q4_1"
    id = 3
    block_size = 32
    type_size = _BLOCK.itemsize
    half_scales = (0, 2)
    tile_blocks = TILE_BLOCKS
    keeps_zero_sign = True
    is_weighted = True
    weighs_rows = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q4_1_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        y["d"], y["m"] = affine_blocks(x, buf, 15)
        np.minimum(buf.q, _HIGHEST[: 4 * len(x)], out=buf.q)
        pack_nibbles(buf.q, y["qs"])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q4_1_impl`."""
        y = out.view(_BLOCK)[:, 0]
        d, m, L = affine_quants(x, weights, 15)
        y["d"], y["m"] = fp16_bits(d), fp16_bits(m)
        store_nibbles(L, y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q4_1`."""
        x = data.view(_BLOCK)[:, 0]
        np.multiply(unpack_nibbles(x["qs"]), fp16_to_fp32(x["d"])[:, None], out=out)
        out += fp16_to_fp32(x["m"])[:, None]


TYPE = _Type()
