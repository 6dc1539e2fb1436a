"""The searches of the K types: for each sub-block the scale (and minimum) with the smallest weighted error.

A tile is laid out `(k, m)`: element i of all m sub-blocks in row i.  All sub-blocks go through the candidates together,
and sums run down the rows in the order of the elements, as C's loops do: NumPy adds row after row there, while a sum
along a row would be pairwise.  Products are formed in C's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from pipeline.quant._base import F32, U8, Index, Take
from pipeline.quant._kernels import first_of_magnitude, nearest_int, signed_largest

GROUP_MAX_EPS: Final = np.float32(1e-15)
_EXACT_COLUMNS: Final = 1024

Round = Callable[[F32, int, int], None]


class SearchBuffers:
    """Scratch of a search over up to *m* sub-blocks of *k* elements."""

    def __init__(self, take: Take, k: int, m: int) -> None:
        self._flat = [take((k * m,), np.float32) for _ in range(5)]

    def shaped(self, k: int, m: int) -> list[F32]:
        """Return the arrays as (k, m), contiguous."""
        return [flat[: k * m].reshape(k, m) for flat in self._flat]


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
    """What `make_qkx2_quants` finds, each (m,).

    *scale* and *min* as it returns them, though the latter not negated; *inverse* and *offset* give the L it found:
    `nearest_int(inverse * (x - offset))`.
    """

    scale: F32
    min: F32
    inverse: F32
    offset: F32


class Candidates(NamedTuple):
    """The arguments rmin, rdelta, nstep and nmax of `make_qkx2_quants`."""

    first: float
    delta: float
    n_steps: int
    n_max: int

    def numerators(self) -> list[np.float32]:
        """Return `rmin + rdelta*is + nmax` for each step."""
        first, delta, top = np.float32(self.first), np.float32(self.delta), np.float32(self.n_max)
        return [first + delta * np.float32(step) + top for step in range(self.n_steps + 1)]


def make_qkx2_quants(x: F32, bounds: Range, plan: Candidates, buf: SearchBuffers) -> Affine:
    """Mirror `make_qkx2_quants` with the weights of `quantize_row_q4_K_ref`, for *x*, (32, m).

    Sub-blocks of equal elements that are not positive come out as C returns them: scale 0, all L zero.  Others are
    searched; those where a rounding left the range of `rint` are searched once more with the exact rounding.
    """
    low = np.minimum(bounds.low, np.float32(0))
    flat = bounds.high == low
    at = np.flatnonzero(~flat)
    if len(at) > 0.9 * len(flat):  # the search leaves the few others as they are
        found, wild = _search_affine(x, Range(low, bounds.high), plan, buf.shaped(*x.shape)[1:], round_fast)
    else:
        found = Affine(*(np.zeros_like(low) for _ in Affine._fields))
        wild = np.empty(0, np.intp)
        if len(at):
            part, *scratch = buf.shaped(len(x), len(at))
            np.take(x, at, axis=1, out=part)
            some, wild = _search_affine(part, Range(low[at], bounds.high[at]), plan, scratch, round_fast)
            _put(found, at, some)
            wild = at[wild]
    for start in range(0, len(wild), _EXACT_COLUMNS):
        at = wild[start : start + _EXACT_COLUMNS]
        scratch = [np.empty((len(x), len(at)), np.float32) for _ in range(4)]
        exact, _ = _search_affine(x[:, at], Range(low[at], bounds.high[at]), plan, scratch, round_exact)
        _put(found, at, exact)
    at = np.flatnonzero(flat)
    zeros = np.zeros(len(at), np.float32)
    _put(found, at, Affine(zeros, low[at], zeros, zeros))
    return found


def _put(target: Affine, at: Index, values: Affine) -> None:
    for array, value in zip(target, values, strict=True):
        array[at] = value


def _search_affine(
    x: F32, bounds: Range, plan: Candidates, scratch: list[F32], rounding: Round
) -> tuple[Affine, Index]:
    """Search all of *x*, (32, m); return what was found and where *rounding* may have left its range."""
    w, L, t, u = scratch
    low, high = bounds
    np.multiply(x, x, out=t)
    np.add(np.abs(x, out=w), np.sqrt(np.add.reduce(t, axis=0) / np.float32(32)), out=w)
    sum_w, sum_x = np.add.reduce(w, axis=0), np.add.reduce(np.multiply(w, x, out=t), axis=0)

    span = high - low
    inverse = np.float32(plan.n_max) / span
    np.multiply(np.subtract(x, low, out=L), inverse, out=L)
    rounding(L, 0, plan.n_max)
    best = Affine(np.float32(1) / inverse, low.copy(), inverse.copy(), low.copy())
    best_error = _squared_error(x, w, L, (best.scale, best.min), t)
    at = np.flatnonzero(span)  # the others have equal elements: they come out as zeros, whatever happens here
    changes = [(at, span[at], np.zeros(len(at), np.float32))]

    for numerator in plan.numerators():
        np.divide(numerator, span, out=inverse)
        np.multiply(np.subtract(x, best.min, out=L), inverse, out=L)
        rounding(L, 0, plan.n_max)
        sum_l = np.add.reduce(np.multiply(w, L, out=t), axis=0)
        sum_xl = np.add.reduce(np.multiply(t, x, out=u), axis=0)
        sum_l2 = np.add.reduce(np.multiply(t, L, out=t), axis=0)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        at = np.flatnonzero(offset > 0)
        offset[at] = 0
        scale[at] = sum_xl[at] / sum_l2[at]

        error = _squared_error(x, w, L, (scale, offset), t)
        at = np.flatnonzero(error < best_error)
        at = at[determinant[at] > 0]
        best_error[at] = error[at]
        # The next candidates start from the new minimum, so this one's own must be remembered for its L.
        _put(best, at, Affine(scale[at], offset[at], inverse[at], best.min[at]))
        span[at] = high[at] - offset[at]
        changes.append((at, span[at], low[at] - offset[at]))
    return best, _wild(*map(np.concatenate, zip(*changes, strict=True)))


def _squared_error(x: F32, w: F32, L: F32, line: tuple[F32, F32], t: F32) -> F32:
    """Return the sum of `w * (scale*L + offset - x)**2` of each sub-block, with *line* (scale, offset)."""
    scale, offset = line
    np.multiply(L, scale, out=t)
    t += offset
    t -= x
    t *= t
    t *= w
    total: F32 = np.add.reduce(t, axis=0)
    return total


def _wild(columns: Index, span: F32, below: F32) -> Index:
    """Return the columns where a rounding may have met more than `nearest_int`'s limit, or no number.

    *span* is `max - min` and *below* the smallest x less min, for each min a column has had: the roundings were of at
    most `(n_max + 1) * (x - min) / span`, with x - min between the two.
    """
    tame = (span >= 1e-36) & (span <= 1e38) & (np.abs(below) <= span * np.float32(1e5))
    return np.unique(columns[~tame])


class Linear(NamedTuple):
    """What `make_qx_quants` finds, each (m,): the scale, and the *inverse* that gives L, `nearest_int(inverse * x)`.

    In the sub-blocks *empty* all magnitudes are below GROUP_MAX_EPS: scale 0, and every L is 0 there.
    """

    scale: F32
    inverse: F32
    empty: Index


def make_qx_quants(x: F32, bounds: Range, n_max: int, buf: SearchBuffers) -> Linear:
    """Mirror `make_qx_quants` with rmse_type 1 and no weights given, for *x*, (16, m)."""
    largest, amax, ties = signed_largest(bounds.low, bounds.high)
    if len(ties):
        largest[ties] = first_of_magnitude(x[:, ties], amax[ties])
    is_empty = amax < GROUP_MAX_EPS
    empty = np.flatnonzero(is_empty)
    if len(empty) <= 0.1 * len(amax):  # the search finds nothing in the few
        largest[empty] = np.inf
        return Linear(*_search_linear(x, largest, n_max, buf.shaped(*x.shape)[1:]), empty)
    found = Linear(np.zeros_like(amax), np.zeros_like(amax), empty)
    at = np.flatnonzero(~is_empty)
    if len(at):
        part, *scratch = buf.shaped(len(x), len(at))
        np.take(x, at, axis=1, out=part)
        found.scale[at], found.inverse[at] = _search_linear(part, largest[at], n_max, scratch)
    return found


def _search_linear(x: F32, largest: F32, n_max: int, scratch: list[F32]) -> tuple[F32, F32]:
    """Search all of *x*, (16, m); return scales and inverses.  `nearest_int` is a rounding here for finite x."""
    w, wx, *_ = scratch
    np.multiply(x, x, out=w)
    np.multiply(w, x, out=wx)
    best_inverse = np.float32(-n_max) / largest
    sum_lx, sum_l2 = _moments(x, best_inverse, n_max, scratch)
    scale = np.divide(sum_lx, sum_l2, out=np.zeros_like(sum_lx), where=sum_l2 != 0)
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(n_max) + np.float32(0.1) * np.float32(step)) / largest
        sum_lx, sum_l2 = _moments(x, inverse, n_max, scratch)
        at = np.flatnonzero(sum_lx * sum_lx > best * sum_l2)
        at = at[sum_l2[at] > 0]
        scale[at] = sum_lx[at] / sum_l2[at]
        best[at] = scale[at] * sum_lx[at]
        best_inverse[at] = inverse[at]
    return scale, best_inverse


def _moments(x: F32, inverse: F32, n_max: int, scratch: list[F32]) -> tuple[F32, F32]:
    """Return the sums of `w*x*l` and of `w*L*l` with `L = nearest_int(inverse*x)`, clipped."""
    w, wx, L, t = scratch
    np.multiply(x, inverse, out=L)
    round_fast(L, -n_max, n_max - 1)
    sum_lx = np.add.reduce(np.multiply(wx, L, out=t), axis=0)
    np.multiply(w, L, out=t)
    t *= L
    return sum_lx, np.add.reduce(t, axis=0)
