"""MXFP4: 32 elements of 4 bits (E2M1) with one scale that is a power of two (E8M0), as gpt-oss is published."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.quant._base import F32, U8, U32, BlockType
from pipeline.quant._e2m1 import VALUES, nearest_e2m1

_BLOCK: Final = np.dtype([("e", "u1"), ("qs", "u1", 16)])


class _Type(BlockType):
    name = "MXFP4"
    id = 39
    block_size = 32
    type_size = _BLOCK.itemsize
    half_scales = ()
    tile_blocks = 1 << 10

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_mxfp4_ref`."""
        y = out.view(_BLOCK)[:, 0]
        amax = np.fmax.reduce(np.abs(x), axis=1, initial=0)
        y["e"] = _exponents(amax)
        nearest = nearest_e2m1(x, _scales(y["e"])[:, None])
        y["qs"] = nearest[:, :16] | nearest[:, 16:] << np.uint8(4)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_mxfp4`."""
        x = data.view(_BLOCK)[:, 0]
        out[:, :16] = VALUES[x["qs"] & np.uint8(15)]
        out[:, 16:] = VALUES[x["qs"] >> np.uint8(4)]
        out *= _scales(x["e"])[:, None]

    def _bad_scales(self, blocks: U8) -> NDArray[np.bool_]:
        """Say which exponents stand for no number."""
        return np.equal(blocks[..., 0], 0xFF)


def _exponents(amax: F32) -> U8:
    """Mirror `(uint8_t) (floorf(log2f(amax)) - 2 + 127)`, which wraps for the smallest numbers."""
    logarithm = np.log2(amax.astype(np.float64)).astype(np.float32)
    whole = np.floor(np.clip(np.nan_to_num(logarithm), -1000, 1000)).astype(np.int32)
    return np.where(amax > 0, whole + 125, 0).astype(np.uint8)


def _scales(e: NDArray[np.uint8]) -> F32:
    """Mirror `ggml_e8m0_to_fp32_half`: half of what the exponents say, for the values are doubled."""
    wide = e.astype(np.uint32)
    bits: U32 = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32)


TYPE = _Type()
