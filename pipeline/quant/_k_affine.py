"""What Q4_K and Q5_K share: super-blocks of 8 sub-blocks of 32, with 6-bit scales and 6-bit minimums."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, Take, workspace
from pipeline.quant._kernels import NEAREST_LIMIT, fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._search import Affine, Candidates, Range, SearchBuffers, make_qkx2_quants, quants

SUPER_BLOCK: Final = 256
# Rows of 8 * 1032 elements: long rows make the many short operations on one value per sub-block cheap.
TILE_BLOCKS: Final = 1032


class AffineBuffers:
    """Scratch of one tile of n super-blocks: element i of sub-block j of super-block b at [i, j n + b]."""

    def __init__(self, take: Take, n: int) -> None:
        self.x: F32 = take((32, 8 * n), np.float32)
        self.q: U8 = take((32, 8 * n), np.uint8)
        self.search = SearchBuffers(take, 32, 8 * n)


def quantize_super_blocks(x: F32, y: Array, plan: Candidates) -> U8:
    """Mirror the common part of `quantize_row_q4_K_ref` and `quantize_row_q5_K_ref`.

    Write the fields d, dmin and scales of the blocks *y*, (n,), and return L as (32, 8, n): element, sub-block,
    super-block.
    """
    n = len(x)
    buf = workspace.get(AffineBuffers, n)
    np.copyto(buf.x.reshape(32, 8, n), x.reshape(n, 8, 32).transpose(2, 1, 0))
    bounds = Range(np.minimum.reduce(buf.x, axis=0), np.maximum.reduce(buf.x, axis=0))
    found = make_qkx2_quants(buf.x, bounds, plan, buf.search)

    y["d"], d, ls = _six_bits(found.scale.reshape(8, n))
    y["dmin"], dmin, lm = _six_bits(-found.min.reshape(8, n))
    pack_scales(ls, lm, y["scales"])
    _final_quants(buf, bounds, found, ((d * ls).reshape(-1), (dmin * lm).reshape(-1)), plan.n_max)
    return buf.q.reshape(32, 8, n)


def _six_bits(values: F32) -> tuple[Array, F32, U8]:
    """Quantize *values*, (8, n), to 6 bits: return (float16 bits of the step, its value, quants)."""
    largest = np.fmax.reduce(values, axis=0, initial=np.float32(0))
    largest += np.float32(0)
    inverse = np.divide(np.float32(63), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = nearest_int(inverse * values).astype(np.uint8)
    step = fp16_bits(largest / np.float32(63))
    return step, fp16_to_fp32(step), np.minimum(rounded, np.uint8(63))


def _final_quants(buf: AffineBuffers, bounds: Range, found: Affine, stored: tuple[F32, F32], n_max: int) -> None:
    """Write L: rounded again with scales and minimums as *stored*, or from the search where such a scale is zero."""
    d, dm = stored
    unscaled = np.flatnonzero(d == 0)
    d[unscaled] = np.inf  # which gives zeros, right for sub-blocks without a scale
    f, *_ = buf.search.shaped(*buf.x.shape)
    np.add(buf.x, dm, out=f)
    f /= d
    low, high = np.abs((bounds.low + dm) / d), np.abs((bounds.high + dm) / d)
    wild = np.flatnonzero(~((low <= NEAREST_LIMIT) & (high <= NEAREST_LIMIT)))
    quants(f, wild, 0, n_max, buf.q)

    kept = unscaled[found.inverse[unscaled] != 0]
    if len(kept):
        f = (buf.x[:, kept] - found.offset[kept]) * found.inverse[kept]
        buf.q[:, kept] = np.clip(nearest_int(f), 0, n_max)


def pack_scales(ls: U8, lm: U8, out: Array) -> None:
    """Write 6-bit scales and minimums, (8, n) each, as the 12 bytes per super-block of *out*, (n, 12)."""
    high = np.uint8(0xC0)
    out[:, 0:4] = (ls[:4] | ((ls[4:] << np.uint8(2)) & high)).T
    out[:, 4:8] = (lm[:4] | ((lm[4:] << np.uint8(2)) & high)).T
    out[:, 8:12] = ((ls[4:] & np.uint8(15)) | (lm[4:] << np.uint8(4))).T


def unpack_scales(scales: U8) -> tuple[U8, U8]:
    """Mirror `get_scale_min_k4` for all sub-blocks of *scales*, (n, 12): scales and minimums, (n, 8) each."""
    first, second, last = scales[:, 0:4], scales[:, 4:8], scales[:, 8:12]
    low, top = np.uint8(63), np.uint8(0x30)
    sc = np.concatenate([first & low, (last & np.uint8(15)) | ((first >> np.uint8(2)) & top)], axis=1)
    m = np.concatenate([second & low, (last >> np.uint8(4)) | ((second >> np.uint8(2)) & top)], axis=1)
    return sc, m


def dequantize_super_blocks(x: Array, q: U8, out: F32) -> None:
    """Write `d*sc*q - dmin*m` for the quants *q*, (n, 8, 32), to *out*, (n, 256)."""
    sc, m = unpack_scales(x["scales"])
    scale = fp16_to_fp32(x["d"])[:, None] * sc
    minimum = fp16_to_fp32(x["dmin"])[:, None] * m
    values = out.reshape(-1, 8, 32)
    np.multiply(q, scale[:, :, None], out=values)
    values -= minimum[:, :, None]
