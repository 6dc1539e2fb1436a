"""TQ2_0: super-blocks of 256 elements that are -1, 0 or 1 times one scale, in 2 bits each."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32
from pipeline.quant._ternary import TILE_BLOCKS, scaled

_BLOCK: Final = np.dtype([("qs", "u1", 64), ("d", "<u2")])
_SHIFTS: Final = np.arange(0, 8, 2, dtype=np.uint8)[:, None]


class _Type(BlockType):
    name = "TQ2_0"
    id = 35
    block_size = 256
    type_size = _BLOCK.itemsize
    half_scales = (64,)
    tile_blocks = TILE_BLOCKS

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_tq2_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        d, q = scaled(x)
        y["d"] = fp16_bits(d)
        y["qs"] = np.bitwise_or.reduce(q.reshape(-1, 2, 4, 32) << _SHIFTS, axis=2).reshape(-1, 64)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_tq2_0`."""
        x = data.view(_BLOCK)[:, 0]
        q = ((x["qs"].reshape(-1, 2, 1, 32) >> _SHIFTS) & np.uint8(3)).view(np.int8) - np.int8(1)
        np.multiply(q.reshape(-1, 256), fp16_to_fp32(x["d"])[:, None], out=out)


TYPE = _Type()
