"""IQ4_NL: 32 elements of 4 bits that stand for sixteen values of unequal distance, with one scale."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, BlockType, Weights
from pipeline.quant._blocks32 import store_nibbles
from pipeline.quant._groups import TILE_BLOCKS
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32
from pipeline.quant._nonlinear import best_index, reciprocal, search_scales, values_of

_BLOCK: Final = np.dtype([("d", "<u2"), ("qs", "u1", 16)])


class _Type(BlockType):
    name = "IQ4_NL"
    id = 20
    block_size = 32
    type_size = _BLOCK.itemsize
    tile_blocks = TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_iq4_nl`."""
        _quantize(x, out, None)

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_iq4_nl` with quant_weights."""
        _quantize(x, out, weights)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_iq4_nl`."""
        x = data.view(_BLOCK)[:, 0]
        np.multiply(values_of(x["qs"]), fp16_to_fp32(x["d"])[:, None], out=out)


def _quantize(x: F32, out: U8, weights: Weights | None) -> None:
    y = out.view(_BLOCK)[:, 0]
    elements, d = search_scales(x, 1, weights)
    y["d"] = fp16_bits(d[0])
    store_nibbles(best_index(reciprocal(d[0]) * elements[:, 0]), y["qs"])


TYPE = _Type()
