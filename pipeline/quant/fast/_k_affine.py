"""What Q4_K and Q5_K share: the search for scale and minimum of a sub-block, 6-bit scales, the final rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16, nearest_clipped, nearest_int
from pipeline.quant.fast._vector import INT, Code, Rows, Value, absolute, larger, smaller, where


class Candidates(NamedTuple):
    """The arguments n, nmax, rmin, rdelta and nstep of `make_qkx2_quants`."""

    n: int
    n_max: int
    first: float
    delta: float
    n_steps: int


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
    """Mirror `make_qkx2_quants` and `make_qkx3_quants`, *x* and *w* (n, lanes); *L* is scratch (n, lanes).

    A lane of equal elements that are not positive comes out as C returns it: scale 0, every L zero.
    """
    n, n_max = plan.n, plan.n_max

    def bounds(i: Value, low: Value, high: Value, sum_w: Value, sum_x: Value) -> tuple[Value, ...]:
        return smaller(x[i], low), larger(x[i], high), sum_w + w[i], sum_x + w[i] * x[i]

    state = code.loop(n - 1, lambda i, *s: bounds(i + 1, *s), x[0], x[0], w[0], w[0] * x[0])
    low, high, sum_w, sum_x = state
    low = where(low > 0, low.like(0), low)
    has_range = high != low

    def error(scale: Value, low: Value) -> Value:
        def add(i: Value, total: Value) -> tuple[Value]:
            diff = scale * L[i] + low - x[i]
            return (total + w[i] * (diff * diff),)

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
        is_better = (this_error < best.error) & (D > 0)
        return best.replaced(is_better, Best(this_error, this_scale, this_min, inverse, best.min))

    n_candidates = where(has_range.any(), code.index(plan.n_steps + 1), code.index(0))
    best = Best(*code.loop(n_candidates, candidate, *best))
    return best.replaced(has_range ^ 1, Best(best.error, *[code.floats(0)] * 4)._replace(min=low, offset=low))


class Fields(NamedTuple):
    """Scratch of one tile: *x* the elements, and per sub-block what the search found and what is stored of it."""

    x: Rows
    w: Rows
    L: Rows
    scales: Rows
    mins: Rows
    inverse: Rows
    offset: Rows
    ls: Rows
    lm: Rows


def fields(code: Code) -> Fields:
    """Reserve the scratch of a tile of super-blocks."""
    return Fields(code.rows(256), code.rows(32), code.rows(64), *(code.rows(8) for _ in range(4)),
                  code.rows(8, INT), code.rows(8, INT))  # fmt: skip


def search(code: Code, f: Fields, plan: Candidates) -> None:
    """Mirror the loop over sub-blocks of `quantize_row_q4_K_ref` and `quantize_row_q5_K_ref`."""

    def sub_block(j: Value) -> None:
        x = f.x.after(j * 32)
        (sum_x2,) = code.each(32, lambda i, total: (total + x[i] * x[i],), code.floats(0))
        av_x = (sum_x2 / 32).sqrt()

        def weight(i: Value) -> None:
            f.w[i] = av_x + absolute(x[i])

        code.each(32, weight)
        best = make_qkx2_quants(code, x, f.w, f.L, plan)
        f.scales[j], f.mins[j] = best.scale, -best.min
        f.inverse[j], f.offset[j] = best.inverse, best.offset

    code.loop(8, sub_block)


def six_bits(code: Code, values: Rows, quants: Rows) -> Value:
    """Quantize the 8 scales or minimums *values* to 6 bits, and give the float16 bits of their step."""
    largest = code.floats(0)
    for j in range(8):
        largest = larger(values[j], largest)
    inverse = where(largest > 0, 63 / largest, 0)
    for j in range(8):
        rounded = nearest_int(inverse * values[j]) & 0xFF
        quants[j] = smaller(rounded, 63)
    return fp32_to_fp16(largest / 63)


def pack_scales(f: Fields, words: Rows) -> None:
    """Write the 6-bit scales and minimums as three *words*: `get_scale_min_k4` undoes it."""
    low, high = f.ls, f.lm
    for word, q in enumerate((low, high)):
        words[word] = _bytes([q[j] | ((q[j + 4] >> 4) << 6) for j in range(4)])
    words[2] = _bytes([(low[j] & 15) | ((high[j] & 15) << 4) for j in range(4, 8)])


def _bytes(parts: list[Value]) -> Value:
    """Join four bytes to a word, the first one lowest."""
    word = parts[0]
    for k, part in enumerate(parts[1:], 1):
        word = word | (part << (8 * k))
    return word


def final_quants(
    code: Code, f: Fields, steps: tuple[Value, Value], n_max: int, pack: Callable[[Value, Rows], None]
) -> None:
    """Round again with the scales as stored, and give two sub-blocks' L at a time, int32 (64, lanes), to *pack*.

    Sub-blocks whose stored scale is zero keep the L of the search.
    """
    d_step, m_step = map(fp16_to_fp32, steps)
    L = Rows(f.L.start, INT)

    def pair(jj: Value) -> None:
        for half in range(2):
            j = jj * 2 + half
            x, out = f.x.after(j * 32), L.after(32 * half)
            d, dm = d_step * f.ls[j].to_float(), m_step * f.lm[j].to_float()

            def rounded(i: Value, x: Rows = x, out: Rows = out, d: Value = d, dm: Value = dm) -> None:
                out[i] = nearest_clipped((x[i] + dm) / d, 0, n_max).ints()

            code.each(32, rounded)

            def kept(i: Value, x: Rows = x, out: Rows = out, d: Value = d, j: Value = j) -> None:
                found = nearest_clipped(f.inverse[j] * (x[i] - f.offset[j]), 0, n_max).ints()
                out[i] = where(d == 0, found, out[i])

            code.when((d == 0).any(), lambda kept=kept: code.each(32, kept))
        pack(jj, L)

    code.loop(4, pair)
