"""Q3_K: super-blocks of 256 elements of 3 bits, 16 sub-blocks with 6-bit scales; the third bits apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, BlockType, Weights, workspace
from pipeline.quant._k_affine import load_two_values, store_two_values
from pipeline.quant._k_linear import SUPER_BLOCK, TILE_BLOCKS, LinearBuffers, final_quants
from pipeline.quant._kernels import fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._linear import first_largest, largest_of, make_q3_quants, make_qx_quants
from pipeline.quant._search import SearchBuffers, column_sums, round_exact

_BLOCK: Final = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<u2")])
_BIT: Final = (1 << np.arange(8)).astype(np.uint8)


class _Type(BlockType):
    name = "Q3_K"
    id = 11
    block_size = SUPER_BLOCK
    type_size = _BLOCK.itemsize
    half_scales = (108,)
    tile_blocks = 2 * TILE_BLOCKS
    is_weighted = True

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Mirror `quantize_row_q3_K_ref`."""
        n, y = len(x), out.view(_BLOCK)[:, 0]
        buf = workspace.get(LinearBuffers, n)
        bounds = buf.load(x)
        scale, L = make_q3_quants(buf.x, largest_of(buf.x, bounds), 4)
        y["d"], ls = _six_bits(scale.reshape(16, n))
        final_quants(buf, bounds, _stored(ls, y), 4, lambda at: L[:, at])
        _pack(buf.q, y)

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:
        """Mirror `quantize_row_q3_K_impl`."""
        n, y = len(x), out.view(_BLOCK)[:, 0]
        buf = workspace.get(LinearBuffers, n)
        bounds = buf.load(x)
        buf.search.lay_out(weights.importance, 16, buf.search.w)
        mean = np.float32(2) * buf.search.sums_of_squares(buf.x, 16) / np.float32(SUPER_BLOCK)
        buf.search.weigh(buf.x, np.tile(mean, 16))
        found = make_qx_quants(buf.x, largest_of(buf.x, bounds), 4, buf.search)
        sums = column_sums(buf.search.w).reshape(16, n)
        y["d"], ls = _weighted_six_bits(found.scale.reshape(16, n), sums)
        final_quants(buf, bounds, _stored(ls, y), 4, lambda at: found.quants(buf.x, at, 4))
        _pack(buf.q, y)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Mirror `dequantize_row_q3_K`."""
        x = data.view(_BLOCK)[:, 0]
        scale = fp16_to_fp32(x["d"])[:, None] * _signed_scales(x["scales"])
        has_bit = (x["hmask"][:, None, :] & _BIT[:, None]) != 0
        q = load_two_values(x["qs"]).reshape(-1, 8, 32).view(np.int8) - np.where(has_bit, np.int8(0), np.int8(4))
        np.multiply(q.reshape(-1, 16, 16), scale[:, :, None], out=out.reshape(-1, 16, 16))


def _six_bits(values: F32) -> tuple[Array, U8]:
    """Quantize scales, (16, n): return float16 bits of the step, (n,), and quants, 0 to 63."""
    largest = first_largest(values)
    has_scale = largest != 0
    inverse = np.float32(-32) / largest
    rounded = nearest_int(inverse * values).astype(np.int8)
    ls = np.clip(rounded, -32, 31) + np.int8(32)
    step = np.where(has_scale, np.float32(1) / inverse, np.float32(0))
    return fp16_bits(step), np.where(has_scale, ls, 0).astype(np.uint8)


def _weighted_six_bits(values: F32, weights: F32) -> tuple[Array, U8]:
    """Do the same by the search of `make_qx_quants` with the sums of *weights*, (16, n)."""
    buf = SearchBuffers(np.empty, *values.shape)
    buf.w[...] = weights
    found = make_qx_quants(values, first_largest(values), 32, buf, round_exact)
    return fp16_bits(found.scale), found.quants(values, np.arange(values.shape[1]), 32)


def _stored(ls: U8, y: Array) -> F32:
    """Write the 6-bit scales *ls*, (16, n), and return each sub-block's scale as it will be read, (16 n,)."""
    low, high = ls & np.uint8(15), ls >> np.uint8(4)
    y["scales"][:, :8] = (low[:8] | (low[8:] << np.uint8(4))).T
    parts = high.reshape(4, 4, -1) << np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]
    y["scales"][:, 8:] = np.bitwise_or.reduce(parts, axis=0).T
    return (fp16_to_fp32(y["d"]) * (ls.view(np.int8) - np.int8(32))).astype(np.float32).reshape(-1)


def _signed_scales(scales: U8) -> Array:
    """Return the scales of *scales*, (n, 12), as int8 (n, 16)."""
    low = np.concatenate([scales[:, :8] & np.uint8(15), scales[:, :8] >> np.uint8(4)], axis=1)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = ((scales[:, None, 8:] >> shifts) & np.uint8(3)).reshape(-1, 16)
    signed: Array = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    return signed


def _pack(q: U8, y: Array) -> None:
    """Write hmask and qs from *q*, (16, 16 n): byte i of hmask holds the third bit of element i of groups of 32."""
    n = len(y)
    third = (q > np.uint8(3)).view(np.uint8).reshape(16, 8, 2, n) * _BIT[:, None, None]
    y["hmask"] = np.bitwise_or.reduce(third, axis=1).transpose(2, 1, 0).reshape(n, 32)
    store_two_values((q & np.uint8(3)).reshape(16, 16, n), y["qs"])


TYPE = _Type()
