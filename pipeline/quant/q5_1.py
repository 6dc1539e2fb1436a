"""Q5_1: 32 elements of 5 bits with a scale and a minimum; the fifth bits lie apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights, workspace
from pipeline.quant._blocks32 import affine_quants, store_fifth_bits, store_nibbles
from pipeline.quant._groups import (
    TILE_BLOCKS,
    GroupBuffers,
    affine_blocks,
    fifth_bits,
    pack_nibbles,
    unpack_bits,
    unpack_nibbles,
)
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("m", "<u2"), ("qh", "u1", 4), ("qs", "u1", 16)])


class _Type(BlockType):
    name = "Q5_1"
    id = 7
    block_size = 32
    type_size = _BLOCK.itemsize
    half_scales = (0, 2)
    tile_blocks = TILE_BLOCKS
    keeps_zero_sign = True
    is_weighted = True
    weighs_rows = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q5_1_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        y["d"], y["m"] = affine_blocks(x, buf, 31)
        y["qh"].view("<u4")[:, 0] = fifth_bits(buf.q)
        buf.q[:4] &= np.uint8(15)
        pack_nibbles(buf.q, y["qs"])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q5_1_impl`."""
        y = out.view(_BLOCK)[:, 0]
        d, m, L = affine_quants(x, weights, 31)
        y["d"], y["m"] = fp16_bits(d), fp16_bits(m)
        store_fifth_bits(L, y["qh"])
        store_nibbles(L, y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q5_1`."""
        x = data.view(_BLOCK)[:, 0]
        quants = unpack_nibbles(x["qs"]) | unpack_bits(x["qh"])
        np.multiply(quants, fp16_to_fp32(x["d"])[:, None], out=out)
        out += fp16_to_fp32(x["m"])[:, None]


TYPE = _Type()
