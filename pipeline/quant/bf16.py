"""BF16: the upper half of a float32, rounded half to even; a NaN is made quiet and keeps its upper bits."""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

from pipeline.quant._base import F32, U8, U16, U32, BlockType

_INFINITY: Final = 0x7F80
_SIGN: Final = 0x8000


class _Type(BlockType):
    name = "BF16"
    id = 30
    block_size = 1
    type_size = 2
    half_scales = ()
    tile_blocks = 1 << 18

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `ggml_fp32_to_bf16_row_ref`."""
        half = out.view(np.uint16)[:, 0]
        np.copyto(half.view(ml_dtypes.bfloat16), x[:, 0], casting="unsafe")
        if np.max(half.view(np.int16)) > _INFINITY or np.max(half) > _INFINITY | _SIGN:
            _keep_nan(x[:, 0].view(np.uint32), half)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `ggml_bf16_to_fp32_row`."""
        bits = out.view(np.uint32)
        np.copyto(bits, data.view(np.uint16))
        bits <<= np.uint32(16)


def _keep_nan(bits: U32, half: U16) -> None:
    """Write NaNs as ggml does; ml_dtypes has one NaN only."""
    at = np.flatnonzero((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000))
    half[at] = (bits[at] >> np.uint32(16)) | np.uint32(64)


TYPE = _Type()
