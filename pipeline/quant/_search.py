"""The searches for the scale and minimum of each sub-block with the smallest weighted error, and what all searches use.

A tile is laid out `(k, m)`: element i of all m sub-blocks in row i.  All sub-blocks go through the candidates together,
and sums run down the rows in the order of the elements, as C's loops do: NumPy adds row after row there, while a sum
along a row would be pairwise.  Products are formed in C's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from pipeline.quant._base import F32, U8, Array, Index, Take
from pipeline.quant._kernels import first_of_magnitude, nearest_int

_EXACT_COLUMNS: Final = 1024

Round = Callable[[F32, int, int], None]


class SearchBuffers:
    """Scratch of a search over up to *m* sub-blocks of *k* elements; *w*, (k, m), are the weights."""

    def __init__(self, take: Take, k: int, m: int) -> None:
        self.w: F32 = take((k, m), np.float32)
        self._flat = [take((k * m,), np.float32) for _ in range(5)]

    def shaped(self, k: int, m: int) -> list[F32]:
        """Return the other arrays as (k, m), contiguous."""
        return [flat[: k * m].reshape(k, m) for flat in self._flat]


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


def weigh(x: F32, importance: F32, mean_square: F32, out: F32) -> None:
    """Write `qw * sqrtf(sigma2 + x*x)`, the weights of an importance matrix, to *out*, (k, m).

    *importance* is (k, m), too, or lies in *out* already; *mean_square* is sigma2, (m,).
    """
    spread = x * x
    spread += mean_square
    np.multiply(importance, np.sqrt(spread, out=spread), out=out)


def round_fast(f: F32, low: int, high: int) -> None:
    """Round *f* to integers within [low, high], in place; right while `nearest_int` is a rounding."""
    np.rint(f, out=f)
    f.clip(np.float32(low), np.float32(high), out=f)


def round_exact(f: F32, low: int, high: int) -> None:
    """Do the same for every float32, as `nearest_int` and a clip do it."""
    np.copyto(f, np.clip(nearest_int(f), low, high), casting="unsafe")


def quants(f: F32, wild: Index, low: int, high: int, out: U8) -> None:
    """Write `clip(nearest_int(f)) - low` to *out*, (k, m); the columns *wild* leave the range of plain rounding."""
    kept = f[:, wild]
    round_fast(f, low, high)
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
        scratch = [np.empty((len(x), len(at)), np.float32) for _ in range(3)]
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
    L, t, u = scratch
    low, high = bounds
    measure = _absolute_error if plan.use_mad else _squared_error
    sum_w, sum_x = column_sums(w), column_sums(np.multiply(w, x, out=t), start=-0.0)

    span = high - low
    inverse = np.float32(plan.n_max) / span
    np.multiply(np.subtract(x, low, out=L), inverse, out=L)
    rounding(L, 0, plan.n_max)
    best = Affine(np.float32(1) / inverse, low.copy(), inverse.copy(), low.copy())
    best_error = measure(x, w, L, (best.scale, best.min), t)
    at = np.flatnonzero(span)  # the others have equal elements: they come out as zeros, whatever happens here
    changes = [(at, span[at], np.zeros(len(at), np.float32))]

    for numerator in plan.numerators():
        np.divide(numerator, span, out=inverse)
        np.multiply(np.subtract(x, best.min, out=L), inverse, out=L)
        rounding(L, 0, plan.n_max)
        sum_l = column_sums(np.multiply(w, L, out=t))
        sum_xl = column_sums(np.multiply(t, x, out=u))
        sum_l2 = column_sums(np.multiply(t, L, out=t))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        at = np.flatnonzero(offset > 0)
        offset[at] = 0
        scale[at] = sum_xl[at] / sum_l2[at]

        error = measure(x, w, L, (scale, offset), t)
        at = np.flatnonzero(error < best_error)
        at = at[determinant[at] > 0]
        best_error[at] = error[at]
        # The next candidates start from the new minimum, so this one's own must be remembered for its L.
        _put(best, at, Affine(scale[at], offset[at], inverse[at], best.min[at]))
        span[at] = high[at] - offset[at]
        changes.append((at, span[at], low[at] - offset[at]))
    return best, _wild(*map(np.concatenate, zip(*changes, strict=True)))


def _squared_error(x: F32, w: F32, L: F32, line: tuple[F32, F32], t: F32) -> Array:
    """Return the sum of `w * (scale*L + offset - x)**2` of each sub-block, with *line* (scale, offset)."""
    _differences(x, L, line, t)
    t *= t
    t *= w
    return column_sums(t)


def _absolute_error(x: F32, w: F32, L: F32, line: tuple[F32, F32], t: F32) -> Array:
    """Return the sum of `w * |scale*L + offset - x|` of each sub-block."""
    _differences(x, L, line, t)
    np.abs(t, out=t)
    t *= w
    return column_sums(t)


def _differences(x: F32, L: F32, line: tuple[F32, F32], t: F32) -> None:
    scale, offset = line
    np.multiply(L, scale, out=t)
    t += offset
    t -= x


def _wild(columns: Index, span: F32, below: F32) -> Index:
    """Return the columns where a rounding may have met more than `nearest_int`'s limit, or no number.

    *span* is `max - min` and *below* the smallest x less min, for each min a column has had: the roundings were of at
    most `(n_max + 1) * (x - min) / span`, with x - min between the two.
    """
    tame = (span >= 1e-36) & (span <= 1e38) & (np.abs(below) <= span * np.float32(1e5))
    return np.unique(columns[~tame])
