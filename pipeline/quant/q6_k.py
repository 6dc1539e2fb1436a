"""Q6_K: super-blocks of 256 elements of 6 bits, 16 sub-blocks with 8-bit scales."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType, Weights, workspace
from pipeline.quant._k_linear import SUPER_BLOCK, TILE_BLOCKS, LinearBuffers, final_quants
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._linear import GROUP_MAX_EPS, first_largest, largest_of, make_qx_quants
from pipeline.quant._search import Range

_BLOCK: Final = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<u2")])
_QUARTER: Final = np.array([1, 4, 16, 64], np.uint8)


class _Type(BlockType):
    name = "Q6_K"
    id = 14
    block_size = SUPER_BLOCK
    type_size = _BLOCK.itemsize
    half_scales = (208,)
    tile_blocks = TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q6_K_ref`."""
        buf = workspace.get(LinearBuffers, len(x))
        bounds = buf.load(x)
        np.multiply(buf.x, buf.x, out=buf.search.w)
        _quantize(buf, bounds, out.view(_BLOCK)[:, 0])

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q6_K_impl`."""
        buf = workspace.get(LinearBuffers, len(x))
        bounds = buf.load(x)
        buf.search.lay_out(weights.importance, 16, buf.search.w)
        _quantize(buf, bounds, out.view(_BLOCK)[:, 0])

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q6_K`."""
        x = data.view(_BLOCK)[:, 0]
        scale = fp16_to_fp32(x["d"])[:, None] * x["scales"]
        np.multiply(_unpack(x), scale[:, :, None], out=out.reshape(-1, 16, 16))


def _quantize(buf: LinearBuffers, bounds: Range, y: Array) -> None:
    """Write the blocks *y*, (n,), of what is loaded, with the weights of the search."""
    n = len(y)
    found = make_qx_quants(buf.x, largest_of(buf.x, bounds), 32, buf.search)
    y["d"], d, scales, zero = _eight_bits(found.scale.reshape(16, n))
    y["scales"] = scales.T
    final_quants(buf, bounds, (d * scales).reshape(-1), 32, lambda at: found.quants(buf.x, at, 32))
    _pack(buf.q.reshape(16, 2, 4, 2, n), y)
    if len(zero):
        y[zero] = np.zeros((), _BLOCK)


def _eight_bits(values: F32) -> tuple[Array, F32, Array, Array]:
    """Quantize scales, (16, n): return (float16 bits of the step, its value, quants, super-blocks without a scale)."""
    largest = first_largest(values)
    zero = np.flatnonzero(np.abs(largest) < GROUP_MAX_EPS)
    inverse = np.float32(-128) / largest
    rounded = np.minimum(nearest_int(inverse * values), np.int32(127))
    step = fp16_bits(np.float32(1) / inverse)
    return step, fp16_to_fp32(step), rounded.astype(np.int8), zero


def _pack(q: U8, y: Array) -> None:
    """Write ql and qh from *q*, (16 elements, 2 halves, 4 quarters, 2 sub-blocks, n)."""
    n = q.shape[-1]
    ql = q[:, :, 2:] * np.uint8(16)
    ql |= q[:, :, :2] & np.uint8(15)
    y["ql"].reshape(n, 2, 2, 2, 16)[...] = ql.transpose(4, 1, 2, 3, 0)
    top = (q.reshape(-1).view(np.uint32) >> np.uint32(4)) & np.uint32(0x03030303)
    quarters = top.view(np.uint8).reshape(q.shape) * _QUARTER[:, None, None]
    y["qh"].reshape(n, 2, 2, 16)[...] = np.bitwise_or.reduce(quarters, axis=2).transpose(3, 1, 2, 0)


def _unpack(x: Array) -> Array:
    """Return the signed quants of the blocks *x*, (n,), as (n, 16, 16)."""
    ql = x["ql"].reshape(-1, 2, 1, 64)
    qh = x["qh"].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & np.uint8(15), ql >> np.uint8(4)], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    low |= ((qh >> shifts) & np.uint8(3)) << np.uint8(4)
    quants = low.view(np.int8)
    quants -= np.int8(32)
    return quants.reshape(-1, 16, 16)


TYPE = _Type()
