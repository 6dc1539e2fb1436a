"""The searches of the K types, one block in each lane; sums run in the order of the elements, as C's loops do."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.quant.fast._math import nearest_clipped, nearest_int
from pipeline.quant.fast._vector import Code, Rows, Value, absolute, larger, smaller, where

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
    has_range = high != low

    def error(scale: Value, low: Value) -> Value:
        def add(i: Value, total: Value) -> tuple[Value]:
            diff = scale * L[i] + low - x[i]
            return (total + w[i] * (absolute(diff) if plan.use_mad else diff * diff),)

        return code.each(n, add, code.floats(0))[0]

    inverse = n_max / (high - low)

    def first(i: Value) -> None:
        L[i] = nearest_clipped(inverse * (x[i] - low), 0, n_max).floats()

    code.each(n, first)
    scale = 1 / inverse
    best = Best(error(scale, low), scale, low, inverse, low)

    def candidate(step: Value, *state: Value) -> Best:
        best = Best(*state)
        numerator = step.to_float() * plan.delta + plan.first + n_max
        inverse = numerator.spread(code.lanes) / (high - best.min)

        def moments(i: Value, sum_l: Value, sum_l2: Value, sum_xl: Value) -> tuple[Value, ...]:
            l = nearest_clipped(inverse * (x[i] - best.min), 0, n_max).floats()
            L[i] = l
            wl = w[i] * l
            return sum_l + wl, sum_l2 + wl * l, sum_xl + wl * x[i]

        sum_l, sum_l2, sum_xl = code.each(n, moments, *[code.floats(0)] * 3)
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

    n_candidates = where(has_range.any(), code.index(plan.n_steps + 1), 0)
    best = Best(*code.loop(n_candidates, candidate, *best))
    zero = code.floats(0)
    return best.replaced(high == low, Best(zero, zero, low, zero, low))


def make_qp_quants(n_max: int, x: Rows, w: Rows, L: Rows, n: int) -> Value:
    """Mirror `make_qp_quants` for *x* and *w*, (n, lanes): write *L*, bytes in int32, and return the scale."""
    code = x.start.code
    largest = code.floats(0)
    for i in range(n):
        largest = larger(largest, x[i])

    def error(inverse: Value, *, clipped: bool) -> Value:
        scale, total = 1 / inverse, code.floats(0)
        for i in range(n):
            l = nearest_int(inverse * x[i])
            diff = x[i] - scale * (smaller(l, n_max) if clipped else l & 0xFF).to_float()
            total = total + w[i] * diff * diff
        return total

    inverse = n_max / largest
    best_error = error(inverse, clipped=False)
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        candidate = (code.floats(step) * 0.1 + n_max) / largest
        this_error = error(candidate, clipped=True)
        is_better = this_error < best_error
        best_error, inverse = where(is_better, this_error, best_error), where(is_better, candidate, inverse)

    sum_lx = sum_l2 = code.floats(0)
    for i in range(n):
        l = smaller(nearest_int(inverse * x[i]), n_max)
        L[i] = l & 0xFF
        sum_lx, sum_l2 = sum_lx + w[i] * x[i] * l.to_float(), sum_l2 + w[i] * l.to_float() * l.to_float()

    def refine(_round: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
        # C stops after a round without a change; another one would change nothing either.
        for i in range(n):
            old = L[i].to_float()
            slx, sl2 = sum_lx - w[i] * x[i] * old, sum_l2 - w[i] * old * old
            may_change = (slx > 0) & (sl2 > 0)
            new = smaller(nearest_int(x[i] * sl2 / slx), n_max)
            slx, sl2 = slx + w[i] * x[i] * new.to_float(), sl2 + w[i] * new.to_float() * new.to_float()
            is_better = may_change & (new != L[i]) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
            L[i] = where(is_better, new & 0xFF, L[i])
            sum_lx, sum_l2 = where(is_better, slx, sum_lx), where(is_better, sl2, sum_l2)
        return sum_lx, sum_l2

    sum_lx, sum_l2 = code.loop(5, refine, sum_lx, sum_l2)
    is_empty = largest < GROUP_MAX_EPS
    for i in range(n):
        L[i] = where(is_empty, 0, L[i])
    return where((sum_l2 > 0) & (is_empty ^ 1), sum_lx / sum_l2, 0)


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

    def largest(i: Value, amax: Value, value: Value) -> tuple[Value, Value]:
        is_larger = absolute(x[i]) > amax
        return where(is_larger, absolute(x[i]), amax), where(is_larger, x[i], value)

    amax, value = code.each(n, largest, zero, zero)
    is_empty = amax < GROUP_MAX_EPS

    def moments(inverse: Value) -> tuple[Value, Value]:
        def add(i: Value, sum_lx: Value, sum_l2: Value) -> tuple[Value, Value]:
            l = nearest_clipped(inverse * x[i], -n_max, n_max - 1).floats()
            weight = x[i] * x[i] if w is None else w[i]
            return sum_lx + weight * x[i] * l, sum_l2 + weight * l * l

        return code.each(n, add, zero, zero)  # type: ignore[return-value]

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
