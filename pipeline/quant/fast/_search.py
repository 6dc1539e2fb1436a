"""The searches of the K types, one block in each lane; sums run in the order of the elements, as C's loops do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.quant.fast._math import NEAREST_LIMIT, Rounded, nearest_above, nearest_below, nearest_clipped, nearest_int
from pipeline.quant.fast._vector import INT, Code, Rows, State, Value, absolute, larger, smaller, where

GROUP_MAX_EPS = 1e-15


class Candidates(NamedTuple):
    """The arguments n, nmax, rmin, rdelta, nstep and use_mad of `make_qkx2_quants`."""

    n: int
    n_max: int
    first: float
    delta: float
    n_steps: int
    use_mad: bool = False


class Best(NamedTuple):
    """The best candidate so far; its L is `nearest_int(inverse * (x - offset))`."""

    error: Value
    scale: Value
    min: Value
    inverse: Value
    offset: Value

    def replaced(self, at: Value, new: Best) -> Best:
        """Take *new* in the lanes *at*."""
        return Best(*(where(at, b, a) for a, b in zip(self, new, strict=True)))


def make_qkx2_quants(code: Code, x: Rows, w: Rows, L: Rows, plan: Candidates) -> Best:
    """Mirror `make_qkx2_quants`, and with weights given `make_qkx3_quants`; *L* is scratch.

    A lane of equal elements that are not positive comes out as C returns it: scale 0, every L zero.
    """
    n, n_max = plan.n, plan.n_max

    def bounds(i: Value, low: Value, high: Value, sum_w: Value, sum_x: Value) -> tuple[Value, ...]:
        return smaller(x[i], low), larger(x[i], high), sum_w + w[i], sum_x + w[i] * x[i]

    low, high, sum_w, sum_x = code.loop(n - 1, lambda i, *s: bounds(i + 1, *s), x[0], x[0], w[0], w[0] * x[0])
    low = where(low > 0, 0, low)
    # Where no lane has a range, all that follows is left out.
    has_range = (high != low).any()
    n_rounded, n_candidates = (where(has_range, code.index(count), 0) for count in (n, plan.n_steps + 1))

    def error(scale: Value, low: Value) -> Value:
        def add(i: Value, total: Value) -> tuple[Value]:
            diff = scale * L[i] + low - x[i]
            return (total + w[i] * (absolute(diff) if plan.use_mad else diff * diff),)

        return code.each(n_rounded, add, code.floats(0))[0]

    inverse = n_max / (high - low)

    def first(i: Value) -> None:
        L[i] = nearest_clipped(inverse * (x[i] - low), 0, n_max).floats()

    code.each(n_rounded, first)
    scale = 1 / inverse
    best = Best(error(scale, low), scale, low, inverse, low)

    def candidate(step: Value, *state: Value) -> Best:
        best = Best(*state)
        numerator = step.to_float() * plan.delta + plan.first + n_max
        inverse = numerator.spread(code.lanes) / (high - best.min)
        sum_l, sum_l2, sum_xl = _candidate_sums(x, w, L, plan, (low, high), (inverse, best.min))
        D = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / D
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / D
        is_above = this_min > 0
        this_min = where(is_above, 0, this_min)
        this_scale = where(is_above, sum_xl / sum_l2, this_scale)
        this_error = error(this_scale, this_min)
        # The next candidates start from the new minimum, so this one's own must be remembered for its L.
        new = Best(this_error, this_scale, this_min, inverse, best.min)
        return best.replaced((this_error < best.error) & (D > 0), new)

    best = Best(*code.loop(n_candidates, candidate, *best))
    zero = code.floats(0)
    return best.replaced(high == low, Best(zero, zero, low, zero, low))


def _candidate_sums(
    x: Rows, w: Rows, L: Rows, plan: Candidates, extremes: tuple[Value, Value], line: tuple[Value, Value]
) -> list[Value]:
    """Write L of a candidate of `make_qkx2_quants`, `inverse * (x - offset)` rounded, and return sum_l, sum_l2, sum_xl.

    *extremes* are the smallest and the largest of x, *line* is the inverse and the offset.
    """
    code, (low, high), (inverse, offset) = x.start.code, extremes, line
    sums = code.rows(3)

    def sum_up(rounded: Callable[[Value], Rounded]) -> None:
        def add(i: Value, sum_l: Value, sum_l2: Value, sum_xl: Value) -> tuple[Value, ...]:
            l = rounded(inverse * (x[i] - offset)).floats()
            L[i] = l
            wl = w[i] * l
            return sum_l + wl, sum_l2 + wl * l, sum_xl + wl * x[i]

        sums[0], sums[1], sums[2] = code.each(plan.n, add, *[code.floats(0)] * 3)

    # Roundings keep the order: that of the largest element, and of the smallest one, are the outermost ones.
    outermost = inverse * (high - offset)
    is_below = (outermost < plan.n_max + 0.5) & (inverse * (low - offset) > -NEAREST_LIMIT) & (inverse > 0)
    code.when(
        is_below.all(),
        lambda: sum_up(lambda f: nearest_below(f, 0)),
        lambda: sum_up(lambda f: nearest_clipped(f, 0, plan.n_max)),
    )
    return [sums[row] for row in range(3)]


def make_qp_quants(n_max: int, x: Rows, w: Rows, L: Rows, n: int) -> Value:
    """Mirror `make_qp_quants` for *x* and *w*, (n, lanes): write *L*, bytes in int32, and return the scale."""
    code = x.start.code
    zero = code.floats(0)
    (largest,) = code.each(n, lambda i, largest: (larger(largest, x[i]),), zero)

    def error(inverse: Value, *, clipped: bool) -> Value:
        scale = 1 / inverse

        def add(i: Value, total: Value) -> tuple[Value]:
            l = nearest_int(inverse * x[i])
            diff = x[i] - scale * (smaller(l, n_max) if clipped else l & 0xFF).to_float()
            return (total + w[i] * diff * diff,)

        return code.each(n, add, zero)[0]

    def candidate(step: Value, best_error: Value, best: Value) -> tuple[Value, Value]:
        offset = (where(step < 4, step, step + 1) - 4).to_float()  # -4 to 4 without 0
        inverse = (offset * 0.1 + n_max).spread(code.lanes) / largest
        this_error = error(inverse, clipped=True)
        is_better = this_error < best_error
        return where(is_better, this_error, best_error), where(is_better, inverse, best)

    inverse = n_max / largest
    _, inverse = code.loop(8, candidate, error(inverse, clipped=False), inverse)

    def first(i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
        l = smaller(nearest_int(inverse * x[i]), n_max)
        L[i] = l & 0xFF
        return sum_lx + w[i] * x[i] * l.to_float(), sum_l2 + w[i] * l.to_float() * l.to_float()

    def refine(i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
        old = L[i].to_float()
        slx, sl2 = sum_lx - w[i] * x[i] * old, sum_l2 - w[i] * old * old
        may_change = (slx > 0) & (sl2 > 0)
        new = smaller(nearest_int(x[i] * sl2 / slx), n_max)
        slx, sl2 = slx + w[i] * x[i] * new.to_float(), sl2 + w[i] * new.to_float() * new.to_float()
        is_better = may_change & (new != L[i]) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
        L[i] = where(is_better, new & 0xFF, L[i])
        return where(is_better, slx, sum_lx), where(is_better, sl2, sum_l2)

    # C stops after a round without a change; another one would change nothing either.
    sums = code.each(n, first, zero, zero)
    sum_lx, sum_l2 = code.loop(5, lambda _round, *sums: code.each(n, refine, *sums), *sums)
    is_empty = largest < GROUP_MAX_EPS

    def clear(i: Value) -> None:
        L[i] = where(is_empty, 0, L[i])

    code.each(n, clear)
    return where((sum_l2 > 0) & (is_empty ^ 1), sum_lx / sum_l2, 0)


def first_largest(code: Code, x: Rows, n: int) -> Value:
    """Give the first of *n* rows with the largest magnitude; where all are zeros, +0 as C's start value."""

    def one(i: Value, amax: Value, value: Value) -> tuple[Value, Value]:
        is_larger = absolute(x[i]) > amax
        return where(is_larger, absolute(x[i]), amax), where(is_larger, x[i], value)

    zero = x[0].like(0)
    return code.each(n, one, zero, zero)[1]


class Linear(NamedTuple):
    """What `make_qx_quants` finds: the scale, and the *inverse* whose `nearest_int(inverse * x)` is L less nmax."""

    scale: Value
    inverse: Value


def make_qx_quants(x: Rows, w: Rows | None, n_max: int, n: int) -> tuple[Linear, Value]:
    """Mirror `make_qx_quants` with rmse_type 1 for *x* and the weights *w*, (n, lanes); no weights means x*x.

    Return what was found and the lanes that are empty: scale 0, and every L 0.
    """
    code = x.start.code
    zero = code.floats(0)
    value = first_largest(code, x, n)
    is_empty = absolute(value) < GROUP_MAX_EPS

    weights, wx, sums = code.rows(n) if w is None else w, code.rows(n), code.rows(2)

    def weigh(i: Value) -> None:
        if w is None:
            weights[i] = x[i] * x[i]
        wx[i] = weights[i] * x[i]

    code.each(n, weigh)

    def moments(inverse: Value) -> tuple[Value, Value]:
        def sum_up(rounded: Callable[[Value], Rounded]) -> None:
            def add(i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
                l = rounded(inverse * x[i]).floats()
                return sum_lx + wx[i] * l, sum_l2 + weights[i] * l * l

            sums[0], sums[1] = code.each(n, add, zero, zero)

        # The product with the element of the largest magnitude is the outermost one.
        is_above = (absolute(inverse * value) <= n_max + 0.5) | is_empty
        code.when(
            is_above.all(),
            lambda: sum_up(lambda f: nearest_above(f, n_max - 1)),
            lambda: sum_up(lambda f: nearest_clipped(f, -n_max, n_max - 1)),
        )
        return sums[0], sums[1]

    inverse = -n_max / value
    sum_lx, sum_l2 = moments(inverse)
    scale = where(sum_l2 != 0, sum_lx / sum_l2, 0)

    def candidate(step: Value, scale: Value, best: Value, best_inverse: Value) -> tuple[Value, ...]:
        offset = (where(step < 9, step, step + 1) - 9).to_float()  # -9 to 9 without 0
        inverse = -(offset * 0.1 + n_max).spread(code.lanes) / value
        sum_lx, sum_l2 = moments(inverse)
        is_better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        new = sum_lx / sum_l2
        return (
            where(is_better, new, scale),
            where(is_better, new * sum_lx, best),
            where(is_better, inverse, best_inverse),
        )

    n_candidates = where((is_empty ^ 1).any(), code.index(18), 0)
    scale, _, inverse = code.loop(n_candidates, candidate, scale, scale * sum_lx, inverse)
    return Linear(where(is_empty, 0, scale), inverse), is_empty


def make_q3_quants(n_max: int, blocks: Sequence[tuple[Rows, Rows, Rows]], n: int) -> None:
    """Mirror `make_q3_quants` with do_rmse for several *blocks*, (x, L, scale) each: write L, int32, and the scale.

    An element's new value waits for the one before it; blocks side by side fill the time.
    """
    code = blocks[0][0].start.code
    found = [cubes for block in blocks for cubes in _Cubes.cut(code, n_max, n, block)]
    empty = [cubes.begin() for cubes in found]
    changed = code.rows(1, INT).registers()[0]
    none = changed[0].like(0)
    changed[0] = none.like(1)

    def refine(i: Value, any_change: Value, *sums: Value) -> State:
        new: list[Value] = []
        for k, cubes in enumerate(found):
            is_taken, *both = cubes.refine(i, *sums[2 * k : 2 * k + 2])
            any_change = where(is_taken, 1, any_change)
            new += both
        return any_change, *new

    def one_round() -> None:
        sums = [cubes.sums[row] for cubes in found for row in range(2)]
        changed[0], *new = code.each(n, refine, none, *sums)
        for k, value in enumerate(new):
            found[k // 2].sums[k % 2] = value

    # A round without a change is the last one, for another one would change nothing either.
    code.loop(5, lambda _round: code.when((changed[0] != 0).any(), one_round))
    for cubes, is_empty in zip(found, empty, strict=True):
        cubes.finish(is_empty)


class _Cubes(NamedTuple):
    """Some lanes of one block of `make_q3_quants`; between rounds *sums* has sumlx and suml2.

    *l* is L less nmax, as float32, and the other rows are each element's w*x*l, w*l*l, w and w*x, which C computes
    again in each round.
    """

    n_max: int
    n: int
    x: Rows
    L: Rows
    scale: Rows
    sums: Rows
    l: Rows
    wxl: Rows
    wl2: Rows
    w: Rows
    wx: Rows

    @classmethod
    def cut(cls, code: Code, n_max: int, n: int, block: tuple[Rows, Rows, Rows]) -> list[_Cubes]:
        """Give a block register by register: a truth value of one register can be part of the next comparison."""
        rows = *block, code.rows(2), *(code.rows(n) for _ in range(5))
        return [cls(n_max, n, *part) for part in zip(*(row.registers() for row in rows), strict=True)]

    def begin(self) -> Value:
        """Write the first values and sums, and say which lanes are empty: scale 0, and every l 0."""
        code, x = self.x.start.code, self.x
        value = first_largest(code, x, self.n)
        inverse, zero = -self.n_max / value, value.like(0)

        def one(i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
            l = nearest_clipped(inverse * x[i], -self.n_max, self.n_max - 1).floats()
            w = x[i] * x[i]
            wx = w * x[i]
            wxl, wl2 = wx * l, w * l * l
            self.l[i], self.wxl[i], self.wl2[i], self.w[i], self.wx[i] = l, wxl, wl2, w, wx
            return sum_lx + wxl, sum_l2 + wl2

        self.sums[0], self.sums[1] = code.each(self.n, one, zero, zero)
        return absolute(value) < GROUP_MAX_EPS

    def refine(self, i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value, Value]:
        """Give element *i* the value that is best with the others as they are: where it is new, and the new sums."""
        slx, sl2 = sum_lx - self.wxl[i], sum_l2 - self.wl2[i]
        may_change = slx > 0
        new = nearest_clipped(self.x[i] * sl2 / slx, -self.n_max, self.n_max - 1).floats()
        wxl, wl2 = self.wx[i] * new, self.w[i] * new * new
        slx, sl2 = slx + wxl, sl2 + wl2
        is_better = (sl2 > 0) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
        is_taken = may_change & (new != self.l[i]) & is_better
        for kept, value in ((self.l, new), (self.wxl, wxl), (self.wl2, wl2)):
            kept[i] = where(is_taken, value, kept[i])
        return is_taken, where(is_taken, slx, sum_lx), where(is_taken, sl2, sum_l2)

    def finish(self, is_empty: Value) -> None:
        """Write L as the block stores it, and the scale."""

        def shift(i: Value) -> None:
            self.L[i] = where(is_empty, 0, (self.l[i] + self.n_max).cut_off())

        self.x.start.code.each(self.n, shift)
        has_scale = (self.sums[1] > 0) & (is_empty ^ 1)
        self.scale[0] = where(has_scale, self.sums[0] / self.sums[1], 0)
