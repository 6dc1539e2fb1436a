"""F16: IEEE half precision, rounded half to even; ggml's NaN is 0x7E00 with the sign kept."""

from __future__ import annotations

import numpy as np

from pipeline.quant._base import F32, U8, BlockType
from pipeline.quant._kernels import FP16_TILE, fp16_table, fp32_to_fp16_row


class _Type(BlockType):
    name = "F16"
    id = 1
    block_size = 1
    type_size = 2
    half_scales = ()
    tile_blocks = FP16_TILE

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `ggml_fp32_to_fp16_row`."""
        fp32_to_fp16_row(x[:, 0], out.view(np.uint16)[:, 0])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `ggml_fp16_to_fp32_row`."""
        np.take(fp16_table(), data.view(np.uint16), out=out, mode="clip")


TYPE = _Type()
