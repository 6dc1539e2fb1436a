"""What Q2_K, Q4_K and Q5_K share: super-blocks of sub-blocks with a scale and a minimum each, themselves quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, Take, workspace
from pipeline.quant._kernels import NEAREST_LIMIT, fp16_bits, fp16_to_fp32, nearest_int
from pipeline.quant._linear import make_qp_quants
from pipeline.quant._search import (
    Affine,
    Candidates,
    Range,
    SearchBuffers,
    column_sums,
    make_qkx_quants,
    quants,
    searched_quants,
    with_importance,
)

SUPER_BLOCK: Final = 256
# With more blocks the five arrays of a search leave a core's cache; with fewer the interpreter counts.
TILE_BLOCKS: Final = 256


@dataclass(frozen=True)
class Format:
    """How a type cuts a super-block, and what its searches are given.

    *length* is that of a sub-block, *scale_max* the largest stored scale.  *plan* and *weights*, which are written to
    the second array, are those without an importance matrix; *spread* is the factor of sigma2 with one.  *store*
    writes scales and minimums, (n_sub, n), to the field *scales* and returns them as they will be read.
    """

    length: int
    scale_max: int
    plan: Candidates
    weights: Callable[[F32, F32], None]
    spread: float
    store: Callable[[U8, U8, Array], tuple[U8, U8]]

    @property
    def n_sub(self) -> int:
        """Number of sub-blocks."""
        return SUPER_BLOCK // self.length


class AffineBuffers:
    """Scratch of one tile of n super-blocks: element i of sub-block j of super-block b at [i, j n + b]."""

    length: int

    def __init__(self, take: Take, n: int) -> None:
        shape = (self.length, SUPER_BLOCK // self.length * n)
        self.x: F32 = take(shape, np.float32)
        self.q: U8 = take(shape, np.uint8)
        self.search = SearchBuffers(take, *shape)


class Buffers16(AffineBuffers):
    """Scratch for sub-blocks of 16."""

    length = 16


class Buffers32(AffineBuffers):
    """Scratch for sub-blocks of 32."""

    length = 32


_BUFFERS: Final[dict[int, type[AffineBuffers]]] = {16: Buffers16, 32: Buffers32}


def quantize_super_blocks(x: F32, y: Array, form: Format, importance: F32 | None = None) -> U8:
    """Mirror the common part of `quantize_row_q4_K_ref` and `quantize_row_q4_K_impl` and of their like.

    Write the fields d, dmin and scales of the blocks *y*, (n,), and return L as (length, n_sub, n): element, sub-block,
    super-block.  *importance* is (n, 256).
    """
    n, n_sub = len(x), form.n_sub
    buf = workspace.get(_BUFFERS[form.length], n)
    buf.search.lay_out(x, form.length, buf.x)
    bounds = Range(np.minimum.reduce(buf.x, axis=0), np.maximum.reduce(buf.x, axis=0))
    if importance is None:
        form.weights(buf.x, buf.search.w)
        plan = form.plan
    else:
        buf.search.lay_out(importance, form.length, buf.search.w)
        mean = np.float32(form.spread) * buf.search.sums_of_squares(buf.x, n_sub) / np.float32(SUPER_BLOCK)
        buf.search.weigh(buf.x, np.tile(mean, n_sub))
        plan = with_importance(form.plan.n_max)
    found = make_qkx_quants(buf.x, bounds, plan, buf.search)
    # Scales and minimums are quantized alike, so they go side by side.
    both = np.concatenate([found.scale.reshape(n_sub, n), -found.min.reshape(n_sub, n)], axis=1)
    if importance is None:
        steps, levels = _steps(both, form.scale_max)
    else:
        sums = column_sums(buf.search.w).reshape(n_sub, n)
        steps, levels = make_qp_quants(both, form.scale_max, np.tile(sums, 2))
    halves = fp16_bits(steps).reshape(2, n)
    y["d"], y["dmin"] = halves
    ls, lm = form.store(levels[:, :n], levels[:, n:], y["scales"])
    d, dm = fp16_to_fp32(halves)
    _final_quants(buf, bounds, found, ((d * ls).reshape(-1), (dm * lm).reshape(-1)), plan.n_max)
    return buf.q.reshape(form.length, n_sub, n)


def _steps(values: F32, top: int) -> tuple[F32, U8]:
    """Quantize *values*, (n_sub, n), to 0..*top*: return the step, (n,), and the quants, which wrap as in C."""
    largest = np.fmax.reduce(values, axis=0, initial=np.float32(0))
    largest += np.float32(0)
    inverse = np.divide(np.float32(top), largest, out=np.zeros_like(largest), where=largest > 0)
    return largest / np.float32(top), nearest_int(inverse * values).astype(np.uint8)


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
        buf.q[:, kept] = searched_quants(buf.x[:, kept], Affine(*(part[kept] for part in found)), n_max)


def six_bit_weights(x: F32, out: F32) -> None:
    """Write the weights of `quantize_row_q4_K_ref` and `_q5_K_ref`: |x| plus the root of the mean square."""
    mean = column_sums(np.multiply(x, x, out=out)) / np.float32(len(x))
    np.add(np.abs(x, out=out), np.sqrt(mean), out=out)


def store_six_bits(ls: U8, lm: U8, out: Array) -> tuple[U8, U8]:
    """Write 6-bit scales and minimums, (8, n) each, and return them as `get_scale_min_k4` reads them."""
    top = np.uint8(63)
    return store_unclipped(np.minimum(ls, top), np.minimum(lm, top), out)


def store_unclipped(ls: U8, lm: U8, out: Array) -> tuple[U8, U8]:
    """Do the same with numbers that may have wrapped; what does not fit 6 bits runs into others, as in C."""
    pack_scales(ls, lm, out)
    sc, m = unpack_scales(out)
    return sc.T, m.T


def store_two_values(q: U8, out: Array) -> None:
    """Write quants of 2 bits, (16, 16, n), to *out*, (n, 64): element l of four groups of 32 shares a byte."""
    n = q.shape[-1]
    quarters = q.reshape(16, 2, 4, 2, n) * np.array([1, 4, 16, 64], np.uint8)[:, None, None]
    out.reshape(n, 2, 2, 16)[...] = np.bitwise_or.reduce(quarters, axis=2).transpose(3, 1, 2, 0)


def load_two_values(qs: U8) -> U8:
    """Return the 256 quants of 2 bits of each super-block of *qs*, (n, 64), as (n, 256)."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    q: U8 = (qs.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    return q.reshape(-1, 256)


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
