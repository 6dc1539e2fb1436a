"""The types with blocks of 32 elements and one float16 scale, with an importance matrix: one block in each lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipeline.quant.fast._kernel import Arguments
from pipeline.quant.fast._math import fp32_to_fp16, nearest_clipped
from pipeline.quant.fast._search import Candidates, make_qkx2_quants, make_qx_quants
from pipeline.quant.fast._tile import blocks, join_bytes, load_importance, weigh
from pipeline.quant.fast._vector import FLOAT, INT, Code, Rows, Value, where


class _Tile(NamedTuple):
    """Scratch: *x* the elements of a tile, *w* their weights, *L* their quants."""

    x: Rows
    words: Rows
    w: Rows
    L: Rows


def linear(code: Code, a: Arguments, n_max: int, n_bytes: int) -> None:
    """Mirror `quantize_row_q4_0_impl` and, with fifth bits, `quantize_row_q5_0_impl`."""

    def search(t: _Tile) -> list[Value]:
        found, is_empty = make_qx_quants(t.x, t.w, n_max, 32)

        def keep(i: Value) -> None:
            l = nearest_clipped(found.inverse * t.x[i], -n_max, n_max - 1).ints(-n_max)
            t.L[i] = where(is_empty, 0, l)

        code.each(32, keep)
        return [found.scale]

    _quantize(code, a, n_bytes, search, has_fifth=n_max > 8)


def affine(code: Code, a: Arguments, n_max: int, n_bytes: int) -> None:
    """Mirror `quantize_row_q4_1_impl` and, with fifth bits, `quantize_row_q5_1_impl`."""
    plan = Candidates(n=32, n_max=n_max, first=-0.9, delta=0.05, n_steps=36)

    def search(t: _Tile) -> list[Value]:
        best = make_qkx2_quants(code, t.x, t.w, Rows(t.L.start, FLOAT), plan)

        def keep(i: Value) -> None:
            t.L[i] = nearest_clipped(best.inverse * (t.x[i] - best.offset), 0, n_max).ints()

        code.each(32, keep)
        return [best.scale, best.min]

    _quantize(code, a, n_bytes, search, has_fifth=n_max > 15)


def _quantize(
    code: Code, a: Arguments, n_bytes: int, search: Callable[[_Tile], list[Value]], *, has_fifth: bool
) -> None:
    """Weigh, search, and write: the float16 numbers that *search* gives, the fifth bits, and two elements in a byte."""
    t = _Tile(code.rows(32), code.rows(-(-n_bytes // 4), INT), code.rows(32), code.rows(32, INT))
    importance, sigma2 = code.rows(32), code.rows(1)

    def mean(lane: Value, first: Value) -> None:
        row = (first + lane) // a.blocks_per_row
        sigma2.start.at(lane * 4).store(a.row_means.at(row * 4).load(FLOAT))

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance, 32)
        code.loop(code.lanes, lambda lane: mean(lane, first))
        weigh(code, t.x, importance, sigma2[0], t.w, 32)
        halves = [fp32_to_fp16(value) for value in search(t)]
        parts = [byte for half in halves for byte in (half & 0xFF, half >> 8)]
        if has_fifth:
            parts += [_fifth_bits(t.L, start) for start in range(0, 32, 8)]
        parts += [(t.L[i] & 15) | ((t.L[i + 16] & 15) << 4) for i in range(16)]
        for word in range(0, n_bytes, 4):
            t.words[word // 4] = join_bytes(parts[word : word + 4])

    blocks(code, a, t.x, t.words, (32, n_bytes), compute)


def _fifth_bits(L: Rows, start: int) -> Value:
    """Join the fifth bits of eight elements to a byte."""
    byte = L[start] >> 4 & 1
    for bit in range(1, 8):
        byte = byte | ((L[start + bit] >> 4 & 1) << bit)
    return byte
