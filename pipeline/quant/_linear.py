"""The searches for the scale alone: of the types without minimum, and of the scales of the K types themselves.

Layout and order of addition are those of `_search`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pipeline.quant._base import F32, I32, U8, Array, Index
from pipeline.quant._kernels import first_of_magnitude, nearest_int, signed_largest
from pipeline.quant._search import Range, Round, SearchBuffers, column_sums, dot_columns, round_fast

GROUP_MAX_EPS: Final = np.float32(1e-15)


class Linear(NamedTuple):
    """What `make_qx_quants` finds, each (m,): the scale, and the *inverse* that gives L, `nearest_int(inverse * x)`.

    In the sub-blocks *empty* all magnitudes are below GROUP_MAX_EPS: scale 0, and every L is 0 there.
    """

    scale: F32
    inverse: F32
    empty: Index

    def quants(self, x: F32, at: Index, n_max: int) -> U8:
        """Return the L of the sub-blocks *at* of *x*, (k, m); they are moved by *n_max*, the empty ones are not."""
        rounded = np.clip(nearest_int(x[:, at] * self.inverse[at]), -n_max, n_max - 1) + np.int32(n_max)
        rounded[:, np.isin(at, self.empty)] = 0
        return rounded.astype(np.uint8)


def largest_of(x: F32, bounds: Range) -> F32:
    """Return the first element of the largest magnitude of each column of *x*, (k, m), finite numbers all."""
    largest, amax, ties = signed_largest(bounds.low, bounds.high)
    if len(ties):
        largest[ties] = first_of_magnitude(x[:, ties], amax[ties])
    return largest


def first_largest(values: F32) -> F32:
    """Do the same for a small array that may hold anything; NaN counts as zero, as in C's comparisons."""
    numbers = np.where(np.isnan(values), np.float32(0), values)
    largest: F32 = numbers[np.argmax(np.abs(numbers), axis=0), np.arange(values.shape[1])]
    return largest + np.float32(0)  # C begins with +0, which no zero replaces


def make_qx_quants(x: F32, largest: F32, n_max: int, buf: SearchBuffers, rounding: Round = round_fast) -> Linear:
    """Mirror `make_qx_quants` with rmse_type 1 for *x*, (k, m), with the weights `buf.w` (x*x where C is given none).

    *largest* is the first element of the largest magnitude of each column.
    """
    is_empty = np.abs(largest) < GROUP_MAX_EPS
    empty = np.flatnonzero(is_empty)
    if len(empty) <= 0.1 * len(largest):  # the few go along, whatever their weights make of them
        largest[empty] = np.inf
        scale, inverse = _search_linear(x, buf.w, largest, n_max, buf.shaped(*x.shape)[2:], rounding)
        scale[empty] = 0
        return Linear(scale, inverse, empty)
    found = Linear(np.zeros_like(largest), np.zeros_like(largest), empty)
    at = np.flatnonzero(~is_empty)
    if len(at):
        part, w, *scratch = buf.shaped(len(x), len(at))
        np.take(x, at, axis=1, out=part)
        np.take(buf.w, at, axis=1, out=w)
        found.scale[at], found.inverse[at] = _search_linear(part, w, largest[at], n_max, scratch, rounding)
    return found


def _search_linear(x: F32, w: F32, largest: F32, n_max: int, scratch: list[F32], rounding: Round) -> tuple[F32, F32]:
    """Search all of *x*, (k, m); return scales and inverses.  `nearest_int` is a rounding here for finite x."""
    L, t = scratch
    zero, lowest, highest = np.float32(0), np.float32(-n_max), np.float32(n_max - 1)

    def moments(inverse: F32) -> tuple[Array, Array]:
        """Return the sums of `w*x*l` and of `w*l*l` with `l = nearest_int(inverse*x)`, clipped."""
        np.multiply(x, inverse, out=L)
        rounding(L, lowest, highest)
        return dot_columns(t, w, x, L), dot_columns(t, w, L, L)

    best_inverse = np.float32(-n_max) / largest
    sum_lx, sum_l2 = moments(best_inverse)
    scale = np.divide(sum_lx, sum_l2, out=np.zeros_like(sum_lx), where=sum_l2 != 0)
    best = scale * sum_lx
    inverse = np.empty_like(largest)
    for step in (*range(-9, 0), *range(1, 10)):
        np.divide(-(np.float32(n_max) + np.float32(0.1) * np.float32(step)), largest, out=inverse)
        sum_lx, sum_l2 = moments(inverse)
        at = ((sum_lx * sum_lx > best * sum_l2) & (sum_l2 > zero)).nonzero()[0]
        numerator = sum_lx[at]
        scale[at] = ratio = numerator / sum_l2[at]
        best[at] = ratio * numerator
        best_inverse[at] = inverse[at]
    return scale, best_inverse


def make_q3_quants(x: F32, largest: F32, n_max: int) -> tuple[F32, U8]:
    """Mirror `make_q3_quants` with do_rmse for *x*, (k, m): return scales, (m,), and L, (k, m).

    Up to five times each element in turn is given the best quant for the scale that the others want.
    """
    is_empty = np.abs(largest) < GROUP_MAX_EPS
    inverse: Array = np.float32(-n_max) / np.where(is_empty, np.float32(np.inf), largest)
    w = x * x
    wx = w * x
    scaled: Array = x * inverse
    L = np.clip(nearest_int(scaled), -n_max, n_max - 1).astype(np.float32)
    sums = [column_sums(wx * L), column_sums(w * L * L)]
    for _ in range(5):
        is_changed = False
        for i in range(len(x)):
            is_changed |= _improve(x[i], (w[i], wx[i]), L[i], sums, n_max)
        if not is_changed:  # where nothing changed once, nothing changes any more
            break
    sum_lx, sum_l2 = sums
    scale = np.divide(sum_lx, sum_l2, out=np.zeros_like(sum_lx), where=sum_l2 > 0)
    quants = (L + np.float32(n_max)).astype(np.uint8)
    scale[is_empty] = 0
    quants[:, is_empty] = 0
    return scale, quants


def _improve(x: F32, weights: tuple[F32, F32], L: F32, sums: list[Array], n_max: int) -> bool:
    """Mirror one step of the inner loop of `make_q3_quants`; *L* and *sums* change in place."""
    w, wx = weights
    sum_lx, sum_l2 = sums
    slx = sum_lx - wx * L
    sl2 = sum_l2 - w * L * L
    new = np.clip(nearest_int(x * sl2 / slx), -n_max, n_max - 1).astype(np.float32)
    at = np.flatnonzero((slx > 0) & (new != L))
    slx, sl2, new = slx[at], sl2[at], new[at]
    slx += wx[at] * new
    sl2 += w[at] * new * new
    old_lx, old_l2 = sum_lx[at], sum_l2[at]
    is_better = (sl2 > 0) & (slx * slx * old_l2 > old_lx * old_lx * sl2)
    at = at[is_better]
    L[at], sum_lx[at], sum_l2[at] = new[is_better], slx[is_better], sl2[is_better]
    return len(at) > 0


def make_qp_quants(x: F32, n_max: int, w: F32) -> tuple[F32, U8]:
    """Mirror `make_qp_quants` for *x*, (k, m), m > 1, hardly ever negative: return scales, (m,), and L, (k, m).

    L is stored as uint8 in C, so that negative ones wrap; arithmetic before storing is with the whole number.
    """
    top = np.zeros(x.shape[1], np.float32)
    for row in x:  # the macro MAX forgets a NaN at the next comparison
        top = np.where(top > row, top, row)
    is_empty = top < GROUP_MAX_EPS
    best_inverse = _best_inverse(x, top, n_max, w)
    found = np.minimum(nearest_int(best_inverse * x), np.int32(n_max))
    L: I32 = found & np.int32(255)
    as_float = found.astype(np.float32)
    wx = w * x
    sums = [column_sums(wx * as_float), column_sums(w * as_float * as_float)]
    for _ in range(5):
        is_changed = False
        for i in range(len(x)):
            is_changed |= _improve_positive(x[i], (w[i], wx[i]), L[i], sums, n_max)
        if not is_changed:
            break
    sum_lx, sum_l2 = sums
    scale = np.divide(sum_lx, sum_l2, out=np.zeros_like(sum_lx), where=sum_l2 > 0)
    scale[is_empty] = 0
    L[:, is_empty] = 0
    return scale, L.astype(np.uint8)


def _best_inverse(x: F32, top: F32, n_max: int, w: F32) -> F32:
    """Return the factor, (m,), that leads to the smallest sum of `w*diff*diff` with `diff = x - L/factor`.

    The nine factors that C tries one after another are independent here, so all go together as (9, k, m).
    """
    steps = np.float32(0.1) * np.array([0, *range(-4, 0), *range(1, 5)], np.float32)
    inverses = (steps + np.float32(n_max))[:, None] / top
    L = nearest_int(inverses[:, None] * x)
    L[0] &= np.int32(255)
    np.minimum(L[1:], np.int32(n_max), out=L[1:])
    difference = x - (np.float32(1) / inverses)[:, None] * L.astype(np.float32)
    error = np.add.reduce(w * difference * difference, axis=1, initial=np.float32(0))
    error[1:][np.isnan(error[1:])] = np.inf
    best: F32 = inverses[np.argmin(error, axis=0), np.arange(x.shape[1])]
    return best


def _improve_positive(x: F32, weights: tuple[F32, F32], L: I32, sums: list[Array], n_max: int) -> bool:
    """Mirror one step of the last loop of `make_qp_quants`; *L* and *sums* change in place."""
    w, wx = weights
    sum_lx, sum_l2 = sums
    old = L.astype(np.float32)
    slx = sum_lx - wx * old
    sl2 = sum_l2 - w * old * old
    new = np.minimum(nearest_int(x * sl2 / slx), np.int32(n_max))
    at = np.flatnonzero((slx > 0) & (sl2 > 0) & (new != L))
    as_float = new[at].astype(np.float32)
    slx, sl2 = slx[at] + wx[at] * as_float, sl2[at] + w[at] * as_float * as_float
    old_lx, old_l2 = sum_lx[at], sum_l2[at]
    is_better = slx * slx * old_l2 > old_lx * old_lx * sl2
    at = at[is_better]
    L[at], sum_lx[at], sum_l2[at] = new[at] & np.int32(255), slx[is_better], sl2[is_better]
    return len(at) > 0
