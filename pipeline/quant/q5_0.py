"""Q5_0: 32 elements of 5 bits with one signed scale; the fifth bits lie apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights, workspace
from pipeline.quant._blocks32 import signed_quants, store_fifth_bits, store_nibbles
from pipeline.quant._groups import (
    TILE_BLOCKS,
    GroupBuffers,
    fifth_bits,
    largest_element,
    pack_nibbles,
    scales,
    unpack_bits,
    unpack_nibbles,
)
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_HIGHEST: Final = np.full(TILE_BLOCKS * 4, 31, np.uint8)


class _Type(BlockType):
    name = "Q5_0"
    id = 6
    block_size = 32
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS
    is_weighted = True
    weighs_rows = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q5_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        buf.load(x)
        d, inverse, bad = scales(largest_element(x, buf) / np.float32(-16))
        y["d"] = fp16_bits(d)

        scaled = np.multiply(buf.x, buf.spread(inverse), out=buf.x)
        scaled += np.float32(16.5)
        np.copyto(buf.q, scaled, casting="unsafe")
        np.minimum(buf.q, _HIGHEST[: 4 * len(x)], out=buf.q)
        if len(bad):
            buf.q.reshape(8, -1, 4)[:, bad] = 0
        y["qh"].view("<u4")[:, 0] = fifth_bits(buf.q)
        buf.q[:4] &= np.uint8(15)
        pack_nibbles(buf.q, y["qs"])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q5_0_impl`."""
        y = out.view(_BLOCK)[:, 0]
        d, L = signed_quants(x, weights, 16)
        y["d"] = fp16_bits(d)
        store_fifth_bits(L, y["qh"])
        store_nibbles(L, y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q5_0`."""
        x = data.view(_BLOCK)[:, 0]
        quants = (unpack_nibbles(x["qs"]) | unpack_bits(x["qh"])).view(np.int8)
        quants -= np.int8(16)
        np.multiply(quants, fp16_to_fp32(x["d"])[:, None], out=out)


TYPE = _Type()
