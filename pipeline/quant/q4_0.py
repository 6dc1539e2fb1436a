"""Q4_0: 32 elements of 4 bits with one signed scale."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights, workspace
from pipeline.quant._blocks32 import signed_quants, store_nibbles
from pipeline.quant._groups import TILE_BLOCKS, GroupBuffers, largest_element, pack_nibbles, scales, unpack_nibbles
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32

_BLOCK: Final = np.dtype([("d", "<u2"), ("qs", "u1", 16)])
_HIGHEST: Final = np.full(TILE_BLOCKS * 4, 15, np.uint8)


class _Type(BlockType):
    name = "Q4_0"
    id = 2
    block_size = 32
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS
    is_weighted = True
    weighs_rows = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q4_0_ref`."""
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(GroupBuffers, len(x))
        buf.load(x)
        d, inverse, bad = scales(largest_element(x, buf) / np.float32(-8))
        y["d"] = fp16_bits(d)

        scaled = np.multiply(buf.x, buf.spread(inverse), out=buf.x)
        scaled += np.float32(8.5)
        np.copyto(buf.q, scaled, casting="unsafe")
        np.minimum(buf.q, _HIGHEST[: 4 * len(x)], out=buf.q)
        if len(bad):
            buf.q.reshape(8, -1, 4)[:, bad] = 0
        pack_nibbles(buf.q, y["qs"])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q4_0_impl`."""
        y = out.view(_BLOCK)[:, 0]
        d, L = signed_quants(x, weights, 8)
        y["d"] = fp16_bits(d)
        store_nibbles(L, y["qs"])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q4_0`."""
        x = data.view(_BLOCK)[:, 0]
        quants = unpack_nibbles(x["qs"]).view(np.int8)
        quants -= np.int8(8)
        np.multiply(quants, fp16_to_fp32(x["d"])[:, None], out=out)


TYPE = _Type()
