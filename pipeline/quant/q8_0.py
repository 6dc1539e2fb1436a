"""Q8_0: 32 elements of 8 bits with one scale."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, workspace
from pipeline.quant._groups import TILE_BLOCKS, GroupBuffers, scales, store_groups
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("qs", "i1", 32)])
_SIGN: Final = np.uint32(0x80000000)
_JUST_BELOW_HALF: Final = np.float32(0.49999997).view(np.uint32)


class _Type(BlockType):
    name = "Q8_0"
    id = 8
    block_size = 32
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q8_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        buf.load(x)
        amax: F32 = np.maximum(buf.maximum(), -buf.minimum())
        amax += np.float32(0)
        d, inverse, bad = scales(amax / np.float32(127))
        y["d"] = fp16_bits(d)

        scaled = np.multiply(buf.x, buf.spread(inverse), out=buf.x)
        quants = buf.q.view(np.int8)
        np.copyto(quants, _away_from_zero(scaled, buf.t), casting="unsafe")
        if len(bad):
            quants.reshape(8, -1, 4)[:, bad] = 0
        store_groups(quants.view(np.uint32), y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q8_0`."""
        x = data.view(_BLOCK)[:, 0]
        np.multiply(x["qs"], fp16_to_fp32(x["d"])[:, None], out=out)


def _away_from_zero(x: F32, t: F32) -> F32:
    """Prepare *x* so that cutting off the fraction gives `roundf`, in place; *t* is scratch.

    Adding the largest float32 below one half, with the sign of x, is exact enough up to 2**22.
    """
    half = t.view(np.uint32)
    np.bitwise_and(x.view(np.uint32), _SIGN, out=half)
    half |= _JUST_BELOW_HALF
    x += t
    return x


TYPE = _Type()
