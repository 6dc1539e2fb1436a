"""What IQ4_NL and IQ4_XS share: quants of 4 bits that stand for sixteen values of unequal distance."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Array, Take, Weights, workspace
from pipeline.quant._linear import GROUP_MAX_EPS, largest_of
from pipeline.quant._search import Range, SearchBuffers, column_sums

VALUES: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # kvalues_iq4nl
_MIDDLES: Final = (VALUES[1:] + VALUES[:-1]) / np.float32(2)
# The value nearest to a number, by twice that number, rounded down: all middles are whole or halves.
_REACH: Final = 300
_NEAREST: Final = VALUES[np.searchsorted(_MIDDLES, np.arange(-_REACH, _REACH) / np.float32(2), side="right")]
_N_TRIES: Final = 7


class NonlinearBuffers:
    """Scratch of m blocks of 32 elements, (32, m)."""

    def __init__(self, take: Take, m: int) -> None:
        self.x: F32 = take((32, m), np.float32)
        self.search = SearchBuffers(take, 32, m)


def search_scales(x: F32, n_sub: int, weights: Weights | None) -> tuple[F32, F32]:
    """Mirror the search of `quantize_row_iq4_nl_impl` for *x*, (n, 32 n_sub).

    Return the elements as (32, n_sub, n), in scratch memory, and the scales, (n_sub, n); 0 where all magnitudes are
    below GROUP_MAX_EPS.
    """
    n = len(x)
    buf = workspace.get(NonlinearBuffers, n * n_sub)
    elements = buf.x.reshape(32, n_sub, n)
    buf.search.lay_out(x, 32, buf.x)
    if weights is None:
        np.multiply(buf.x, buf.x, out=buf.search.w)
    else:
        buf.search.lay_out(weights.importance, 32, buf.search.w)
        mean = buf.search.sums_of_squares(buf.x, n_sub) * np.float32(2 / (32 * n_sub))
        buf.search.weigh(buf.x, np.tile(mean, n_sub))
    largest = largest_of(buf.x, Range(np.minimum.reduce(buf.x, axis=0), np.maximum.reduce(buf.x, axis=0)))
    empty = np.flatnonzero(np.abs(largest) < GROUP_MAX_EPS)
    largest[empty] = np.inf
    scale = _search(buf, largest)
    scale[empty] = 0
    return elements, scale.reshape(n_sub, n)


def _search(buf: NonlinearBuffers, largest: F32) -> Array:
    """Try scales that bring *largest*, (m,), to values around the outermost one; return the best ones."""
    x, w = buf.x, buf.search.w
    q, wq, *_ = buf.search.shaped(*x.shape)

    def moments(inverse: Array) -> tuple[Array, Array]:
        """Return the sums of `w*q*x` and `w*q*q` with q the value nearest to `inverse*x`."""
        twice = np.multiply(x, inverse + inverse, out=q)
        np.floor(twice, out=twice)
        at = np.clip(twice, -_REACH, _REACH - 1).astype(np.intp)
        at += _REACH
        np.take(_NEAREST, at, out=q, mode="clip")
        np.multiply(w, q, out=wq)
        np.multiply(wq, q, out=q)
        sum_q2 = column_sums(q)
        return column_sums(np.multiply(wq, x, out=q)), sum_q2

    sum_qx, sum_q2 = moments(np.float32(1) / (-largest / VALUES[0]))
    scale = np.divide(sum_qx, sum_q2, out=np.zeros_like(sum_qx), where=sum_q2 > 0)
    best = scale * sum_qx
    for attempt in range(-_N_TRIES, _N_TRIES + 1):
        sum_qx, sum_q2 = moments((np.float32(attempt) + VALUES[0]) / largest)
        at = np.flatnonzero((sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2))
        scale[at] = sum_qx[at] / sum_q2[at]
        best[at] = scale[at] * sum_qx[at]
    return scale


def best_index(x: F32) -> U8:
    """Mirror `best_index_int8` with the sixteen values, for any number and NaN; halves go up."""
    return np.searchsorted(_MIDDLES, x, side="right").astype(np.uint8)


def reciprocal(d: F32) -> F32:
    """Mirror `d ? 1/d : 0.f`."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def values_of(qs: U8) -> F32:
    """Return the values of *qs*, (..., 16), as (..., 32)."""
    found: F32 = VALUES[np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=-1)]
    return found
