"""BF16: the upper half of a float32, rounded half to even; a NaN is made quiet and keeps its upper bits."""

from __future__ import annotations

import numpy as np

from pipeline.quant._base import F32, U8, U16, U32, BlockType, Take, workspace


class _Buffers:
    def __init__(self, take: Take, n: int) -> None:
        self.rounded: U32 = take((n,), np.uint32)


class _Type(BlockType):
    name = "BF16"
    id = 30
    block_size = 1
    type_size = 2
    tile_blocks = 1 << 16

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `ggml_fp32_to_bf16_row_ref`."""
        bits, half = x[:, 0].view(np.uint32), out.view(np.uint16)[:, 0]
        rounded = workspace.get(_Buffers, len(x)).rounded
        np.right_shift(bits, np.uint32(16), out=rounded)
        np.bitwise_and(rounded, np.uint32(1), out=rounded)
        rounded += bits
        rounded += np.uint32(0x7FFF)
        rounded >>= np.uint32(16)
        np.copyto(half, rounded, casting="unsafe")
        if len(x) and np.isnan(np.max(x)):
            _keep_nan(bits, half)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `ggml_bf16_to_fp32_row`."""
        bits = out.view(np.uint32)
        np.copyto(bits, data.view(np.uint16))
        bits <<= np.uint32(16)


def _keep_nan(bits: U32, half: U16) -> None:
    at = np.flatnonzero((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000))
    half[at] = (bits[at] >> np.uint32(16)) | np.uint32(64)


TYPE = _Type()
