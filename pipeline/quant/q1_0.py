"""Q1_0: 128 signs with one scale, the mean magnitude."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("qs", "u1", 16)])


class _Type(BlockType):
    name = "Q1_0"
    id = 41
    block_size = 128
    type_size = _BLOCK.itemsize
    tile_blocks = 2048

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q1_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        total: F32 = np.add.accumulate(np.abs(x), axis=1)[:, -1]
        y["d"] = fp16_bits(np.divide(total, np.float32(128), out=total))
        y["qs"] = np.packbits(x >= 0, axis=1, bitorder="little")

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q1_0`."""
        x = data.view(_BLOCK)[:, 0]
        d = fp16_to_fp32(x["d"])[:, None]
        out[...] = np.where(np.unpackbits(np.ascontiguousarray(x["qs"]), axis=1, bitorder="little"), d, -d)


TYPE = _Type()
