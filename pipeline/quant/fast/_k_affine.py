"""What Q4_K and Q5_K share: super-blocks of 8 sub-blocks of 32, with 6-bit scales and 6-bit minimums."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from pipeline.quant.fast._decode import decoding, load_half, store_line
from pipeline.quant.fast._kernel import Arguments, Build
from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16, nearest_clipped, nearest_int
from pipeline.quant.fast._search import Candidates, make_qkx2_quants, make_qp_quants
from pipeline.quant.fast._tile import join_bytes, load_importance, super_blocks, weigh
from pipeline.quant.fast._vector import INT, Code, Pointer, Rows, Value, absolute, larger, smaller, where

Pack = Callable[[Value, Rows, Rows], None]


class _Tile(NamedTuple):
    """Scratch: *x* the elements of a tile, and for each sub-block what the search found.

    *w* and *L* are those of the sub-block at hand, or of two; *sums* are sums of weights.
    """

    x: Rows
    words: Rows
    w: Rows
    L: Rows
    scales: Rows
    mins: Rows
    inverse: Rows
    offset: Rows
    sums: Rows


def _scratch(code: Code, n_bytes: int) -> _Tile:
    return _Tile(
        code.rows(256), code.rows(n_bytes // 4, INT), code.rows(32), code.rows(64), *(code.rows(8) for _ in range(5))
    )


def quantize_super_blocks(code: Code, a: Arguments, plan: Candidates, n_bytes: int, pack: Pack) -> None:
    """Mirror the common part of `quantize_row_q4_K_ref` and `quantize_row_q5_K_ref`.

    *pack* writes the quants of two sub-blocks: it is given the number of the pair, L as int32 (64, lanes), and the
    words of the blocks, of which d, dmin and scales are the first four.
    """
    t = _scratch(code, n_bytes)

    def weights(x: Rows, _j: Value) -> None:
        (sum_x2,) = code.each(32, lambda i, total: (total + x[i] * x[i],), code.floats(0))
        av_x = (sum_x2 / 32).sqrt()

        def weight(i: Value) -> None:
            t.w[i] = av_x + absolute(x[i])

        code.each(32, weight)

    def compute(_first: Value) -> None:
        _search(code, t, plan, weights)
        quants = code.rows(8, INT), code.rows(8, INT)
        d, dmin = _six_bits(t.scales, quants[0]), _six_bits(t.mins, quants[1])
        _finish(code, t, (d, dmin), quants, plan.n_max, pack)

    super_blocks(code, a, t.x, t.words, n_bytes, compute)


def quantize_weighted(
    code: Code, a: Arguments, n_max: int, n_bytes: int, pack: Pack, *, clip_scales: bool = False
) -> None:
    """Mirror the common part of `quantize_row_q4_K_impl` and `quantize_row_q5_K_impl`; the latter clips the scales."""
    t, importance = _scratch(code, n_bytes), code.rows(256)
    plan = Candidates(n=32, n_max=n_max, first=-0.9, delta=0.05, n_steps=36)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance)
        (sum_x2,) = code.each(256, lambda i, total: (total + t.x[i] * t.x[i],), code.floats(0))
        sigma2 = sum_x2 * 2 / 256

        def weights(x: Rows, j: Value) -> None:
            t.sums[j] = weigh(code, x, importance.after(j * 32), sigma2, t.w, 32)

        _search(code, t, plan, weights)
        quants = code.rows(8, INT), code.rows(8, INT)
        d, dmin = (
            fp32_to_fp16(make_qp_quants(63, values, t.sums, L, 8))
            for values, L in zip((t.scales, t.mins), quants, strict=True)
        )
        if clip_scales:
            for L, j in itertools.product(quants, range(8)):
                L[j] = smaller(L[j], 63)
        _finish(code, t, (d, dmin), quants, n_max, pack)

    super_blocks(code, a, t.x, t.words, n_bytes, compute)


def decoding_super_blocks(n_bytes: int, quants: Callable[[Pointer, int], tuple[Value, Value]]) -> Build:
    """Return what mirrors the common part of `dequantize_row_q4_K` and `dequantize_row_q5_K`.

    *quants* is given a block and the number of a pair of sub-blocks, and loads the quants of both, int32 (32,).
    """

    def block(x: Pointer, out: Pointer) -> None:
        d, dmin = load_half(x), load_half(x.at(2))
        words = [x.at(4 + 4 * word).load(INT) for word in range(3)]
        for pair in range(4):
            for j, q in enumerate(quants(x, pair), 2 * pair):
                scale, minimum = _get_scale_min_k4(j, words)
                store_line(out, j, q, d * scale.to_float(), dmin * minimum.to_float())

    return decoding(256, n_bytes, block)


def _search(code: Code, t: _Tile, plan: Candidates, weights: Callable[[Rows, Value], None]) -> None:
    """Find scale and minimum of each sub-block; *weights* writes its weights."""

    def sub_block(j: Value) -> None:
        x = t.x.after(j * 32)
        weights(x, j)
        best = make_qkx2_quants(code, x, t.w, t.L, plan)
        t.scales[j], t.mins[j] = best.scale, -best.min
        t.inverse[j], t.offset[j] = best.inverse, best.offset

    code.loop(8, sub_block)


def _six_bits(values: Rows, quants: Rows) -> Value:
    """Quantize the 8 scales or minimums *values* to 6 bits, and give the float16 bits of their step."""
    code = values.start.code
    largest = code.floats(0)
    for j in range(8):
        largest = larger(values[j], largest)
    inverse = where(largest > 0, 63 / largest, 0)
    for j in range(8):
        quants[j] = smaller(nearest_int(inverse * values[j]) & 0xFF, 63)
    return fp32_to_fp16(largest / 63)


def _finish(
    code: Code, t: _Tile, steps: tuple[Value, Value], quants: tuple[Rows, Rows], n_max: int, pack: Pack
) -> None:
    """Write the blocks: L is rounded again with the scales as they are stored."""
    d, dmin = steps
    t.words[0] = d | (dmin << 16)
    _pack_scales(*quants, t.words.after(1))
    for j in range(8):
        quants[0][j], quants[1][j] = _get_scale_min_k4(j, t.words.after(1))
    d_step, m_step = fp16_to_fp32(d), fp16_to_fp32(dmin)
    L = Rows(t.L.start, INT)

    def pair(number: Value) -> None:
        for half in range(2):
            j = number * 2 + half
            line = d_step * quants[0][j].to_float(), m_step * quants[1][j].to_float()
            _final_quants(code, t, j, line, n_max, L.after(32 * half))
        pack(number, L, t.words)

    code.loop(4, pair)


def _final_quants(code: Code, t: _Tile, j: Value, line: tuple[Value, Value], n_max: int, L: Rows) -> None:
    """Write L of one sub-block, int32; where its stored scale is zero, that of the search."""
    x, (d, dm) = t.x.after(j * 32), line

    def rounded(i: Value) -> None:
        L[i] = nearest_clipped((x[i] + dm) / d, 0, n_max).ints()

    def kept(i: Value) -> None:
        found = nearest_clipped(t.inverse[j] * (x[i] - t.offset[j]), 0, n_max).ints()
        L[i] = where(d == 0, found, L[i])

    code.when((d != 0).any(), lambda: code.each(32, rounded))
    code.when((d == 0).any(), lambda: code.each(32, kept))


def _pack_scales(ls: Rows, lm: Rows, words: Rows) -> None:
    """Write the 6-bit scales and minimums as three words."""
    for word, q in enumerate((ls, lm)):
        words[word] = join_bytes([(q[j] | (q[j + 4] >> 4 << 6)) & 0xFF for j in range(4)])
    words[2] = join_bytes([(ls[j] & 15) | ((lm[j] & 15) << 4) for j in range(4, 8)])


def _get_scale_min_k4(j: int, words: Rows | list[Value]) -> tuple[Value, Value]:
    """Mirror `get_scale_min_k4`."""
    if j < 4:
        return (words[0] >> (8 * j)) & 63, (words[1] >> (8 * j)) & 63
    shift = 8 * (j - 4)
    low = words[2] >> shift
    high_scale, high_min = (words[n] >> (shift + 6) & 3 for n in range(2))
    return (low & 15) | (high_scale << 4), (low >> 4 & 15) | (high_min << 4)
