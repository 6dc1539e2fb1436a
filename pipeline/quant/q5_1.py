"""Q5_1: 32 elements of 5 bits with a scale and a minimum; the fifth bits lie apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, workspace
from pipeline.quant._groups import (
    TILE_BLOCKS,
    GroupBuffers,
    fifth_bits,
    pack_nibbles,
    scales,
    unpack_bits,
    unpack_nibbles,
)
from pipeline.quant._kernels import first_of_magnitude, fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("m", "<u2"), ("qh", "u1", 4), ("qs", "u1", 16)])


class _Type(BlockType):
    name = "Q5_1"
    id = 7
    block_size = 32
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS
    is_weighted = True
    weighs_rows = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q5_1_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        buf.load(x)
        lowest = buf.minimum()
        _sign_of_zero(x, lowest)
        # The sum with zero makes a difference of two zeros positive, as that of one and the same element is.
        d, inverse, bad = scales((buf.maximum() - lowest + np.float32(0)) / np.float32(31))
        y["d"] = fp16_bits(d)
        y["m"] = fp16_bits(lowest)

        scaled = np.subtract(buf.x, buf.spread(lowest), out=buf.x)
        scaled *= buf.spread(inverse)
        scaled += np.float32(0.5)
        np.copyto(buf.q, scaled, casting="unsafe")
        if len(bad):
            buf.q.reshape(8, -1, 4)[:, bad] = 0
        y["qh"].view("<u4")[:, 0] = fifth_bits(buf.q)
        buf.q[:4] &= np.uint8(15)
        pack_nibbles(buf.q, y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q5_1`."""
        x = data.view(_BLOCK)[:, 0]
        quants = unpack_nibbles(x["qs"]) | unpack_bits(x["qh"])
        np.multiply(quants, fp16_to_fp32(x["d"])[:, None], out=out)
        out += fp16_to_fp32(x["m"])[:, None]


def _sign_of_zero(x: F32, lowest: F32) -> None:
    """Give a minimum of zero the sign of the first zero of its block, as C's comparisons in a row do."""
    at = np.flatnonzero(lowest == 0)
    if len(at):
        lowest[at] = first_of_magnitude(x[at].T, np.zeros(len(at), np.float32))


TYPE = _Type()
