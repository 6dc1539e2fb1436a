"""NVFP4: 64 elements of 4 bits (E2M1), and for each 16 of them a scale of 8 bits (E4M3 without sign)."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType
from pipeline.quant._e2m1 import VALUES, nearest_e2m1

_BLOCK: Final = np.dtype([("d", "u1", 4), ("qs", "u1", 32)])
_LARGEST: Final = 0x7E


class _Type(BlockType):
    name = "NVFP4"
    id = 40
    block_size = 64
    type_size = _BLOCK.itemsize
    half_scales = ()  # every byte is a scale
    tile_blocks = 1 << 10

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_nvfp4_ref`."""
        y = out.view(_BLOCK)[:, 0]
        parts = x.reshape(-1, 4, 16)
        y["d"] = _to_ue4m3(np.fmax.reduce(np.abs(parts), axis=2, initial=0) / np.float32(6))
        nearest = nearest_e2m1(parts, _SCALES[y["d"]][:, :, None])
        y["qs"] = (nearest[:, :, :8] | nearest[:, :, 8:] << np.uint8(4)).reshape(-1, 32)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_nvfp4`."""
        x = data.view(_BLOCK)[:, 0]
        qs = x["qs"].reshape(-1, 4, 8)
        values = VALUES[np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2)]
        np.multiply(values, _SCALES[x["d"]][:, :, None], out=out.reshape(-1, 4, 16))


def _to_ue4m3(x: F32) -> U8:
    """Mirror `ggml_fp32_to_ue4m3` for numbers that are not negative: halves round up."""
    bits = np.minimum(x, np.float32(448)).astype(np.float32).view(np.int32)
    exponent = ((bits >> 23) & 0xFF) - 120
    # Three bits of the mantissa, rounded by the next one; a carry goes into the exponent.
    normal = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
    subnormal = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    return np.where(exponent <= 0, subnormal, np.where(normal < 15 << 3, normal, _LARGEST)).astype(np.uint8)


def _from_ue4m3() -> F32:
    """Return the value of each code halved, for the values of E2M1 are doubled: `ggml_ue4m3_to_fp32`."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value[[0, 0x7F]] = 0
    return (value / 2).astype(np.float32)


_SCALES: Final = _from_ue4m3()


TYPE = _Type()
