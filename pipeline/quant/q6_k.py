"""Q6_K: super-blocks of 256 elements of 6 bits, 16 sub-blocks with 8-bit scales."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType, Take, workspace
from pipeline.quant._kernels import NEAREST_LIMIT, fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._search import GROUP_MAX_EPS, Linear, Range, SearchBuffers, make_qx_quants, quants

_BLOCK: Final = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<u2")])
_QUARTER: Final = np.array([1, 4, 16, 64], np.uint8)


class _Buffers:
    """Scratch of one tile of n super-blocks: element i of sub-block j of super-block b at [i, j n + b]."""

    def __init__(self, take: Take, n: int) -> None:
        self.x: F32 = take((16, 16 * n), np.float32)
        self.q: U8 = take((16, 16 * n), np.uint8)
        self.search = SearchBuffers(take, 16, 16 * n)


class _Type(BlockType):
    name = "Q6_K"
    id = 14
    block_size = 256
    type_size = _BLOCK.itemsize
    tile_blocks = 1032
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q6_K_ref`."""
        n = len(x)
        y = out.view(_BLOCK)[:, 0]
        buf = workspace.get(_Buffers, n)
        np.copyto(buf.x.reshape(16, 16, n), x.reshape(n, 16, 16).transpose(2, 1, 0))
        bounds = Range(np.minimum.reduce(buf.x, axis=0), np.maximum.reduce(buf.x, axis=0))
        found = make_qx_quants(buf.x, bounds, 32, buf.search)

        y["d"], d, scales, zero = _eight_bits(found.scale.reshape(16, n))
        y["scales"] = scales.T
        _final_quants(buf, bounds, found, (d * scales).reshape(-1))
        _pack(buf.q.reshape(16, 2, 4, 2, n), y)
        if len(zero):
            y[zero] = np.zeros((), _BLOCK)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q6_K`."""
        x = data.view(_BLOCK)[:, 0]
        scale = fp16_to_fp32(x["d"])[:, None] * x["scales"]
        np.multiply(_unpack(x), scale[:, :, None], out=out.reshape(-1, 16, 16))


def _eight_bits(values: F32) -> tuple[Array, F32, Array, Array]:
    """Quantize scales, (16, n): return (float16 bits of the step, its value, quants, super-blocks without a scale)."""
    magnitude = np.abs(values)
    magnitude[np.isnan(values)] = 0
    row = np.argmax(magnitude, axis=0)
    column = np.arange(values.shape[1])
    zero = np.flatnonzero(magnitude[row, column] < GROUP_MAX_EPS)
    inverse = np.float32(-128) / values[row, column]
    rounded = np.minimum(nearest_int(inverse * values), np.int32(127))
    step = fp16_bits(np.float32(1) / inverse)
    return step, fp16_to_fp32(step), rounded.astype(np.int8), zero


def _final_quants(buf: _Buffers, bounds: Range, found: Linear, d: F32) -> None:
    """Write L: rounded again with the scales as they are stored, or from the search where such a scale is zero."""
    unscaled = d == 0
    d[unscaled] = np.inf
    f, *_ = buf.search.shaped(*buf.x.shape)
    np.divide(buf.x, d, out=f)
    low, high = np.abs(bounds.low / d), np.abs(bounds.high / d)
    wild = np.flatnonzero(~((low <= NEAREST_LIMIT) & (high <= NEAREST_LIMIT)))
    quants(f, wild, -32, 31, buf.q)

    kept = np.flatnonzero(unscaled)
    if len(kept):
        buf.q[:, kept] = np.clip(nearest_int(buf.x[:, kept] * found.inverse[kept]), -32, 31) + np.int32(32)
        buf.q[:, found.empty[unscaled[found.empty]]] = 0


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
