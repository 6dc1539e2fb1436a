"""What IQ4_NL and IQ4_XS share: quants of 4 bits that stand for sixteen values of unequal distance."""

from __future__ import annotations

from itertools import pairwise

from pipeline.quant.fast._search import GROUP_MAX_EPS, first_largest
from pipeline.quant.fast._vector import Code, Rows, Value, absolute, where

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl
_N_TRIES = 7


def best_value(x: Value) -> Value:
    """Give the value nearest to each x, which halfway is the larger one, as is the largest for NaN."""
    value = x.like(VALUES[0])
    for low, high in pairwise(VALUES):
        value = where(x < (low + high) / 2, value, value + (high - low))
    return value


def best_index(x: Value) -> Value:
    """Mirror `best_index_int8` with the sixteen values, as int32."""
    index = x.code.ints(0)
    for low, high in pairwise(VALUES):
        index = where(x < (low + high) / 2, index, index + 1)
    return index


def reciprocal(d: Value) -> Value:
    """Mirror `d ? 1/d : 0.f`."""
    return where(d != 0, 1 / d, 0)


def search_scale(code: Code, x: Rows, w: Rows | None) -> Value:
    """Mirror the search of `quantize_row_iq4_nl_impl` for one block of 32; without weights *w* they are x*x.

    The scale is 0 where all magnitudes are below GROUP_MAX_EPS.
    """
    zero = code.floats(0)
    largest = first_largest(code, x, 32)
    is_empty = absolute(largest) < GROUP_MAX_EPS

    def moments(inverse: Value) -> tuple[Value, ...]:
        def add(i: Value, sum_qx: Value, sum_q2: Value) -> tuple[Value, Value]:
            q = best_value(inverse * x[i])
            wq = (x[i] * x[i] if w is None else w[i]) * q
            return sum_qx + wq * x[i], sum_q2 + wq * q

        return code.each(32, add, zero, zero, unroll=2)

    def candidate(step: Value, scale: Value, best: Value) -> tuple[Value, Value]:
        numerator = (step - (_N_TRIES - VALUES[0])).to_float()
        sum_qx, sum_q2 = moments(numerator.spread(code.lanes) / largest)
        is_better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        new = sum_qx / sum_q2
        return where(is_better, new, scale), where(is_better, new * sum_qx, best)

    sum_qx, sum_q2 = moments(1 / (-largest / VALUES[0]))
    scale = where(sum_q2 > 0, sum_qx / sum_q2, 0)
    n_candidates = where((is_empty ^ 1).any(), code.index(2 * _N_TRIES + 1), 0)
    scale, _ = code.loop(n_candidates, candidate, scale, scale * sum_qx)
    return where(is_empty, 0, scale)


def write_indices(code: Code, x: Rows, inverse: Value, L: Rows) -> None:
    """Write the quants of 32 elements, int32."""

    def one(i: Value) -> None:
        L[i] = best_index(inverse * x[i])

    code.each(32, one)
