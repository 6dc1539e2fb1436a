"""The searches for the scale and minimum of each sub-block with the smallest weighted error, and what all searches use.

A tile is laid out `(k, m)`: element i of all m sub-blocks in row i.  All sub-blocks go through the candidates together,
and sums run down the rows in the order of the elements, as C's loops do: NumPy adds row after row there, while a sum
along a row would be pairwise.  Products are formed in C's order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.quant._base import F32, U8, Array, Index, Take
from pipeline.quant._kernels import first_of_magnitude, nearest_int

_EXACT_COLUMNS: Final = 1024
_PRODUCTS: Final = {2: "ij,ij->j", 3: "ij,ij,ij->j"}

Round = Callable[[F32, np.float32, np.float32], None]


class SearchBuffers:
    """Scratch of a search over up to *m* sub-blocks of *k* elements; *w*, (k, m), are the weights."""

    def __init__(self, take: Take, k: int, m: int) -> None:
        self.w: F32 = take((k, m), np.float32)
        self._rest: F32 = take((4 * k * m,), np.float32)

    def shaped(self, k: int, m: int) -> list[F32]:
        """Return the other arrays as (k, m), contiguous."""
        return list(self._rest[: 4 * k * m].reshape(4, k, m))

    def lay_out(self, x: F32, length: int, out: F32) -> None:
        """Write *x*, n rows of sub-blocks of *length*, as columns to *out*, (length, n_sub n); the rest is scratch.

        Rows a power of two apart would share a few places of the cache, so they are moved apart first.
        """
        n, width = x.shape
        apart = self._rest[: n * (width + 16)].reshape(n, width + 16)[:, :width]
        np.copyto(apart, x)
        np.copyto(out.reshape(length, -1, n), apart.reshape(n, -1, length).transpose(2, 1, 0))

    def sums_of_squares(self, x: F32, n_sub: int) -> Array:
        """Return the sum of squares of each super-block of *x*, laid out, in the order of its elements."""
        squares, ordered, *_ = self.shaped(*x.shape)
        np.multiply(x, x, out=squares)
        rows = ordered.reshape(n_sub, len(x), -1)
        np.copyto(rows, squares.reshape(len(x), n_sub, -1).transpose(1, 0, 2))
        return column_sums(rows.reshape(n_sub * len(x), -1))

    def weigh(self, x: F32, mean_square: F32) -> None:
        """Make of the importances in `w` the weights of *x*, (k, m): `qw * sqrtf(sigma2 + x*x)`, sigma2 (m,)."""
        spread, *_ = self.shaped(*x.shape)
        np.multiply(x, x, out=spread)
        spread += mean_square
        self.w *= np.sqrt(spread, out=spread)


def first_zeros(x: F32, extremes: F32) -> None:
    """Give an extreme of zero the sign of the first zero of its row of *x*, (n, k), as C's comparisons in a row do."""
    at = np.flatnonzero(extremes == 0)
    if len(at):
        extremes[at] = first_of_magnitude(x[at].T, np.zeros(len(at), np.float32))


def column_sums(x: F32, start: float = 0.0) -> Array:
    """Add up each column of *x*, (k, m), in the order of the rows: from zero on, as C's loops do.

    With -0 to start from, which changes nothing, it is as if the sum began with the first element.
    """
    if x.shape[1] > 1:
        total: Array = np.add.reduce(x, axis=0, initial=np.float32(start))
        return total
    # A single column is contiguous, and NumPy would add it pairwise.
    total = np.add.accumulate(x, axis=0)[-1]
    total += np.float32(start)
    return total


def dot_columns(t: F32, *factors: F32) -> Array:
    """Add up the products of *factors*, two or three arrays (k, m), of each column, as `column_sums` adds.

    Products are formed from left to right.  *t*, (k, m), is scratch; one of the factors may lie there.
    """
    if t.shape[1] > 1 and _einsum_rounds():
        total: Array = np.einsum(_PRODUCTS[len(factors)], *factors)
        return total
    first, *others = factors
    for other in others:
        first = np.multiply(first, other, out=t)
    return column_sums(first)


@cache
def _einsum_rounds() -> bool:
    """Whether `np.einsum` rounds each product before it adds it, and adds row after row.

    It saves a pass over the array.  Built for processors whose multiplication and addition are one instruction it
    may take that, which rounds once.
    """
    near_one = np.float32(1 + 2**-12)
    rows = [(1e8, 1), (1, 1), (-1e8, 1), (-near_one * near_one, 1), (near_one, near_one)]
    a, b = (np.repeat(np.array(column, np.float32)[:, None], 67, axis=1) for column in zip(*rows, strict=True))
    one = np.ones_like(a)
    return not any(np.einsum(_PRODUCTS[len(factors)], *factors).any() for factors in ((a, b), (a, one, b)))


def round_fast(f: F32, low: np.float32, high: np.float32) -> None:
    """Round *f* to integers within [low, high], in place; right while `nearest_int` is a rounding."""
    np.rint(f, out=f)
    f.clip(low, high, out=f)


def round_exact(f: F32, low: np.float32, high: np.float32) -> None:
    """Do the same for every float32, as `nearest_int` and a clip do it."""
    np.copyto(f, np.clip(nearest_int(f), int(low), int(high)), casting="unsafe")


def quants(f: F32, wild: Index, low: int, high: int, out: U8) -> None:
    """Write `clip(nearest_int(f)) - low` to *out*, (k, m); the columns *wild* leave the range of plain rounding."""
    kept = f[:, wild]
    round_fast(f, np.float32(low), np.float32(high))
    f -= np.float32(low)
    np.copyto(out, f, casting="unsafe")
    if len(wild):
        out[:, wild] = np.clip(nearest_int(kept), low, high) - np.int32(low)


class Range(NamedTuple):
    """Smallest and largest element of each sub-block, (m,)."""

    low: F32
    high: F32


class Affine(NamedTuple):
    """What `make_qkx2_quants` and `make_qkx3_quants` find, each (m,).

    *scale* and *min* as they return them, though the latter not negated; *inverse* and *offset* give the L it found:
    `nearest_int(inverse * (x - offset))`.
    """

    scale: F32
    min: F32
    inverse: F32
    offset: F32


class Candidates(NamedTuple):
    """The arguments rmin, rdelta, nstep, nmax and use_mad of `make_qkx2_quants`."""

    first: float
    delta: float
    n_steps: int
    n_max: int
    use_mad: bool = False

    def numerators(self) -> list[np.float32]:
        """Return `rmin + rdelta*is + nmax` for each step."""
        first, delta, top = np.float32(self.first), np.float32(self.delta), np.float32(self.n_max)
        return [first + delta * np.float32(step) + top for step in range(self.n_steps + 1)]


def with_importance(n_max: int) -> Candidates:
    """Return what `make_qkx3_quants` is called with wherever there is an importance matrix."""
    return Candidates(first=-0.9, delta=0.05, n_steps=36, n_max=n_max)


def make_qkx_quants(x: F32, bounds: Range, plan: Candidates, buf: SearchBuffers) -> Affine:
    """Mirror `make_qkx2_quants` and `make_qkx3_quants`, which do the same, for *x*, (k, m), with the weights `buf.w`.

    Sub-blocks of equal elements that are not positive come out as C returns them: scale 0, all L zero.  Others are
    searched; those where a rounding left the range of `rint` are searched once more with the exact rounding.
    """
    low = bounds.low.copy()
    low[low > 0] = 0
    flat = bounds.high == low
    at = np.flatnonzero((bounds.high == 0) & ~flat)
    if len(at):  # C keeps the sign of the first zero, and a difference of two zeros becomes a divisor
        bounds.high[at] = first_of_magnitude(x[:, at], np.zeros(len(at), np.float32))
    at = np.flatnonzero(~flat)
    if len(at) > 0.9 * len(flat):  # the search leaves the few others as they are
        found, wild = _search_affine(x, buf.w, Range(low, bounds.high), plan, buf.shaped(*x.shape)[2:], round_fast)
    else:
        found = Affine(*(np.zeros_like(low) for _ in Affine._fields))
        wild = np.empty(0, np.intp)
        if len(at):
            part, w, *scratch = buf.shaped(len(x), len(at))
            np.take(x, at, axis=1, out=part)
            np.take(buf.w, at, axis=1, out=w)
            some, wild = _search_affine(part, w, Range(low[at], bounds.high[at]), plan, scratch, round_fast)
            _put(found, at, some)
            wild = at[wild]
    for start in range(0, len(wild), _EXACT_COLUMNS):
        at = wild[start : start + _EXACT_COLUMNS]
        scratch = [np.empty((len(x), len(at)), np.float32) for _ in range(2)]
        part, w = np.take(x, at, axis=1), np.take(buf.w, at, axis=1)  # contiguous, unlike x[:, at]
        exact, _ = _search_affine(part, w, Range(low[at], bounds.high[at]), plan, scratch, round_exact)
        _put(found, at, exact)
    at = np.flatnonzero(flat)
    zeros = np.zeros(len(at), np.float32)
    _put(found, at, Affine(zeros, low[at], zeros, zeros))
    return found


def searched_quants(x: F32, found: Affine, n_max: int) -> U8:
    """Return the L of a search, (k, m), of all or some sub-blocks."""
    return np.clip(nearest_int((x - found.offset) * found.inverse), 0, n_max).astype(np.uint8)


def _put(target: Affine, at: Index, values: Affine) -> None:
    for array, value in zip(target, values, strict=True):
        array[at] = value


def _search_affine(
    x: F32, w: F32, bounds: Range, plan: Candidates, scratch: list[F32], rounding: Round
) -> tuple[Affine, Index]:
    """Search all of *x*, (k, m); return what was found and where *rounding* may have left its range."""
    L, t = scratch
    low, high = bounds
    total_error = _absolute_error if plan.use_mad else _squared_error
    zero, top = np.float32(0), np.float32(plan.n_max)
    sum_w, sum_x = column_sums(w), column_sums(np.multiply(w, x, out=t), start=-0.0)

    span = high - low
    is_flat = span == 0
    inverse = top / span
    np.multiply(np.subtract(x, low, out=L), inverse, out=L)
    rounding(L, zero, top)
    best_scale, best_inverse = np.float32(1) / inverse, inverse.copy()
    # The steps start from the minimum of the best one before them, so that one's own must be remembered for its L.
    minimum, start = low.copy(), low.copy()
    least, most = low.copy(), low.copy()
    best_error = total_error(_differences(x, L, best_scale, minimum), w)

    for numerator in plan.numerators():
        np.divide(numerator, np.subtract(high, minimum, out=span), out=inverse)
        np.multiply(np.subtract(x, minimum, out=L), inverse, out=L)
        rounding(L, zero, top)
        sum_l, sum_xl, sum_l2 = dot_columns(t, w, L), dot_columns(t, w, L, x), dot_columns(t, w, L, L)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        at = (offset > zero).nonzero()[0]
        if len(at):
            offset[at] = 0
            scale[at] = sum_xl[at] / sum_l2[at]

        error = total_error(_differences(x, L, scale, offset), w)
        at = ((error < best_error) & (determinant > zero)).nonzero()[0]
        best_error[at], best_scale[at], best_inverse[at] = error[at], scale[at], inverse[at]
        start[at], minimum[at] = minimum[at], offset[at]
        np.minimum(least, minimum, out=least)
        np.maximum(most, minimum, out=most)
    found = Affine(best_scale, minimum, best_inverse, start)
    return found, np.flatnonzero(_is_wild(bounds, least, most) & ~is_flat)


def _differences(x: F32, L: F32, scale: Array, offset: Array) -> F32:
    """Turn *L* into `scale*L + offset - x`, in place."""
    L *= scale
    L += offset
    L -= x
    return L


def _squared_error(difference: F32, w: F32) -> Array:
    """Return the sum of `w * difference**2` of each column, (k, m); the differences are lost."""
    return dot_columns(difference, difference, difference, w)


def _absolute_error(difference: F32, w: F32) -> Array:
    """Return the sum of `w * |difference|` of each column, (k, m); the differences are lost."""
    return dot_columns(difference, np.abs(difference, out=difference), w)


def _is_wild(bounds: Range, least: F32, most: F32) -> NDArray[np.bool_]:
    """Say in which columns a rounding may have met more than `nearest_int`'s limit, or no number.

    The roundings were of at most `(n_max + 1) * (x - min) / (high - min)`, with x between *bounds* and min between
    *least* and *most*.
    """
    low, high = bounds
    span = high - most
    below = np.maximum(np.abs(low - least), np.abs(low - most))
    is_tame: NDArray[np.bool_] = (span >= 1e-36) & (high - least <= 1e38) & (below <= span * np.float32(1e5))
    return ~is_tame
