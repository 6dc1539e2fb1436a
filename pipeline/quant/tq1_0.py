"""TQ1_0: super-blocks of 256 elements that are -1, 0 or 1 times one scale, five of them in a byte."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32
from pipeline.quant._ternary import TILE_BLOCKS, scaled

_BLOCK: Final = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<u2")])
_POWERS: Final = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
# Elements of a super-block: 5 in each of 32 bytes, 5 in each of 16, 4 in each of 4.
_GROUPS: Final = ((0, 160, 5, 32), (160, 240, 5, 16), (240, 256, 4, 4))


class _Type(BlockType):
    name = "TQ1_0"
    id = 34
    block_size = 256
    type_size = _BLOCK.itemsize
    half_scales = (52,)
    tile_blocks = TILE_BLOCKS

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_tq1_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        d, q = scaled(x)
        y["d"] = fp16_bits(d)
        packed = [_pack(q[:, start:stop].reshape(-1, k, n)) for start, stop, k, n in _GROUPS]
        y["qs"][:, :32], y["qs"][:, 32:], y["qh"] = packed

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_tq1_0`."""
        x = data.view(_BLOCK)[:, 0]
        d = fp16_to_fp32(x["d"])[:, None]
        packed = (x["qs"][:, :32], x["qs"][:, 32:], x["qh"])
        for (start, stop, k, _), part in zip(_GROUPS, packed, strict=True):
            trits = (part[:, None, :] * _POWERS[:k]).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            q = trits.astype(np.int16) - np.int16(1)
            out[:, start:stop] = q.reshape(len(x), -1).astype(np.float32) * d


def _pack(q: Array) -> Array:
    """Write up to five trits, (blocks, k, n), as one number below 243, stretched to a byte by a division rounded up."""
    value = np.zeros((len(q), q.shape[2]), np.uint16)
    for digit in range(5):
        value *= np.uint16(3)
        if digit < q.shape[1]:
            value += q[:, digit]
    return (value * np.uint16(256) + np.uint16(242)) // np.uint16(243)


TYPE = _Type()
