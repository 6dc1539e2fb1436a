"""F32: the values as they are."""

from __future__ import annotations

import numpy as np

from pipeline.quant._base import F32, U8, BlockType


class _Type(BlockType):
    name = "F32"
    id = 0
    block_size = 1
    type_size = 4
    half_scales = ()
    tile_blocks = 1 << 20

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Copy the bytes, as `ggml_quantize_chunk` does for GGML_TYPE_F32."""
        np.copyto(out, x.view(np.uint8))

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Copy the bytes."""
        np.copyto(out.view(np.uint8), data)


TYPE = _Type()
