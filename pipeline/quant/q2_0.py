"""Q2_0: 64 elements of 2 bits, -1 to 2 times one scale."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32
from pipeline.quant._ternary import scaled

_BLOCK: Final = np.dtype([("d", "<u2"), ("qs", "u1", 16)])
_SHIFTS: Final = np.arange(0, 8, 2, dtype=np.uint8)


class _Type(BlockType):
    name = "Q2_0"
    id = 42
    block_size = 64
    type_size = _BLOCK.itemsize
    tile_blocks = 4096

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q2_0_ref`: 2 never comes out, and where the reciprocal of d overflows all are -1."""
        y = out.view(_BLOCK)[:, 0]
        d, q = scaled(x)
        q[(d > 0) & np.isinf(np.float32(1) / d)] = 0
        y["d"] = fp16_bits(d)
        y["qs"] = np.bitwise_or.reduce(q.reshape(-1, 16, 4) << _SHIFTS, axis=2)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q2_0`."""
        x = data.view(_BLOCK)[:, 0]
        q = ((x["qs"][:, :, None] >> _SHIFTS) & np.uint8(3)).view(np.int8) - np.int8(1)
        np.multiply(q.reshape(-1, 64), fp16_to_fp32(x["d"])[:, None], out=out)


TYPE = _Type()
