"""Q2_K: super-blocks of 256 elements of 2 bits, 16 sub-blocks with 4-bit scales and minimums."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16, nearest_clipped, nearest_int
from pipeline.quant.fast._search import Best, Candidates, make_qkx2_quants, make_qp_quants
from pipeline.quant.fast._tile import join_bytes, load_importance, pack_crumbs, super_blocks, weigh
from pipeline.quant.fast._vector import FLOAT, INT, Code, Rows, Value, absolute, larger, where

_BYTES = 84
_QS, _D = 4, 20  # words before the quants and before d and dmin


class _Tile(NamedTuple):
    """Scratch: *x* the elements of a tile, *L* their quants, and for each sub-block what the search found."""

    x: Rows
    words: Rows
    w: Rows
    L: Rows
    scales: Rows
    mins: Rows
    inverse: Rows
    offset: Rows
    sums: Rows


def _scratch(code: Code) -> _Tile:
    several = (code.rows(16) for _ in range(5))
    return _Tile(code.rows(256), code.rows(_BYTES // 4, INT), code.rows(16), code.rows(256, INT), *several)


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q2_K_ref`."""
    t = _scratch(code)
    plan = Candidates(n=16, n_max=3, first=-0.5, delta=0.1, n_steps=15, use_mad=True)

    def sub_block(j: Value) -> None:
        x = t.x.after(j * 16)

        def weight(i: Value) -> None:
            t.w[i] = absolute(x[i])

        code.each(16, weight)
        _keep(t, j, make_qkx2_quants(code, x, t.w, Rows(t.L.start, FLOAT), plan))

    def compute(_first: Value) -> None:
        code.loop(16, sub_block)
        quants = code.rows(16, INT), code.rows(16, INT)
        steps = _four_bits(t.scales, quants[0]), _four_bits(t.mins, quants[1])
        _finish(code, t, steps, quants)

    super_blocks(code, a, t.x, t.words, _BYTES, compute)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q2_K_impl`."""
    t, importance = _scratch(code), code.rows(256)
    plan = Candidates(n=16, n_max=3, first=-0.9, delta=0.05, n_steps=36)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance)
        (sum_x2,) = code.each(256, lambda i, total: (total + t.x[i] * t.x[i],), code.floats(0))
        sigma2 = sum_x2 / 256

        def sub_block(j: Value) -> None:
            x = t.x.after(j * 16)
            t.sums[j] = weigh(code, x, importance.after(j * 16), sigma2, t.w, 16)
            _keep(t, j, make_qkx2_quants(code, x, t.w, Rows(t.L.start, FLOAT), plan))

        code.loop(16, sub_block)
        quants = code.rows(16, INT), code.rows(16, INT)
        steps = (
            fp32_to_fp16(make_qp_quants(15, t.scales, t.sums, quants[0], 16)),
            fp32_to_fp16(make_qp_quants(15, t.mins, t.sums, quants[1], 16)),
        )
        _finish(code, t, steps, quants)

    super_blocks(code, a, t.x, t.words, _BYTES, compute)


def _keep(t: _Tile, j: Value, best: Best) -> None:
    t.scales[j], t.mins[j] = best.scale, -best.min
    t.inverse[j], t.offset[j] = best.inverse, best.offset


def _four_bits(values: Rows, quants: Rows) -> Value:
    """Quantize the 16 scales or minimums *values* to 4 bits, and give the float16 bits of their step."""
    largest = values.start.code.floats(0)
    for j in range(16):
        largest = larger(values[j], largest)
    inverse = 15 / largest
    for j in range(16):
        quants[j] = where(largest > 0, nearest_int(inverse * values[j]) & 0xFF, 0)
    return fp32_to_fp16(largest / 15)


def _finish(code: Code, t: _Tile, steps: tuple[Value, Value], quants: tuple[Rows, Rows]) -> None:
    """Write the blocks: L is rounded again with the scales as they are stored."""
    d, dmin = steps
    stored = [(quants[0][j] | (quants[1][j] << 4)) & 0xFF for j in range(16)]
    for word in range(4):
        t.words[word] = join_bytes(stored[4 * word : 4 * word + 4])
    for j, byte in enumerate(stored):
        t.scales[j] = fp16_to_fp32(d) * (byte & 15).to_float()
        t.mins[j] = fp16_to_fp32(dmin) * (byte >> 4).to_float()
    t.words[_D] = d | (dmin << 16)
    code.loop(16, lambda j: _final_quants(code, t, j))
    pack_crumbs(code, t.L, t.words.after(_QS))


def _final_quants(code: Code, t: _Tile, j: Value) -> None:
    """Write L of one sub-block; where its stored scale is zero, that of the search."""
    x, L, d, dm = t.x.after(j * 16), t.L.after(j * 16), t.scales[j], t.mins[j]

    def rounded(i: Value) -> None:
        L[i] = nearest_clipped((x[i] + dm) / d, 0, 3).ints()

    def kept(i: Value) -> None:
        found = nearest_clipped(t.inverse[j] * (x[i] - t.offset[j]), 0, 3).ints()
        L[i] = where(d == 0, found, L[i])

    code.when((d != 0).any(), lambda: code.each(16, rounded))
    code.when((d == 0).any(), lambda: code.each(16, kept))


KERNEL = Kernel("Q2_K", 25, _build, _build_weighted)
