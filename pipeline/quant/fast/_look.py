"""Kernels that only look at numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.quant.fast._kernel import Arguments, Build, Floats
from pipeline.quant.fast._tile import load_tile, tiles
from pipeline.quant.fast._vector import HALF, INT, Code, Value, larger


def largest_magnitude(element: Any) -> Build:
    """Write the largest of `n_blocks` words without their sign bit, as int32, to *out*."""
    bits = element.width

    def build(code: Code, a: Arguments) -> None:
        def one(first: Value, *best: Value) -> tuple[Value, ...]:
            words = a.x.at(first * (bits // 8)).load(element, code.lanes)
            wide = words if element == INT else words.widen(INT)
            return (larger(wide & ((1 << (bits - 1)) - 1), best[0]),)

        (found,) = tiles(code, a.n_blocks, one, code.ints(0))
        while found.raw.type.count > 1:
            half = found.raw.type.count // 2
            found = larger(found.shuffle(list(range(half))), found.shuffle(list(range(half, 2 * half))))
        a.out.store(found)

    return build


def largest_half(code: Code, a: Arguments) -> None:
    """Raise the int32 at *out* to the largest of `n_blocks` words of 16 bits, *blocks_per_row* bytes apart, less signs.

    A block is one word here.
    """

    def one(i: Value, best: Value) -> tuple[Value]:
        word = a.x.at(i * a.blocks_per_row).load(HALF).widen(INT) & 0x7FFF
        return (larger(word, best),)

    (found,) = code.loop(a.n_blocks, one, a.out.load(INT))
    a.out.store(found)


def looking(build: Build, block_size: int, type_size: int, half_scales: tuple[int, ...]) -> Build:
    """Return what does as *build*, which reads bfloat16, and looks at all that it reads and writes.

    At *importance* are two int32, zeros before: the largest magnitude of the numbers, as bits of bfloat16, and that of
    the blocks' scales, as bits of float16, which are *half_scales* bytes after each block's start.
    """

    def both(code: Code, a: Arguments) -> None:
        largest_magnitude(HALF)(code, replace(a, n_blocks=a.n_blocks * block_size, out=a.importance))
        build(code, a)
        for offset in half_scales:
            place = replace(a, x=a.out.at(offset), out=a.importance.at(4), blocks_per_row=code.index(type_size))
            largest_half(code, place)

    return both


N_COMPARED = 5


def compare(code: Code, a: Arguments) -> None:
    """Write what x (at *x*) and y (at *importance*) add up to, float64 (N_COMPARED, lanes).

    The rows are the sums of x*x, y*y, x*y and (x-y)*(x-y), and the largest |x-y|.  A block has as many numbers as
    there are lanes.
    """
    y_start, lanes = Floats(a.importance), code.lanes

    def one(i: Value, xx: Value, yy: Value, xy: Value, square: Value, largest: Value) -> tuple[Value, ...]:
        x, y = (start.at(i * lanes).load(lanes).doubles() for start in (a.values, y_start))
        d = x - y
        return xx + x * x, yy + y * y, xy + x * y, square + d * d, larger(larger(d, -d), largest)

    zero = code.floats(0).doubles()
    for row, found in enumerate(code.loop(a.n_blocks, one, *[zero] * N_COMPARED)):
        a.out.at(row * 8 * lanes).store(found)


def sum_of_squares(code: Code, a: Arguments) -> None:
    """Write the sum of the squares of each row, in the order of its elements, to *out*; rows go side by side.

    A block is a row here, and *blocks_per_row* the number of its columns, a multiple of 32.
    """
    x, n_cols = code.rows(32), a.blocks_per_row

    def tile(first: Value) -> None:
        def columns(group: Value, total: Value) -> tuple[Value]:
            load_tile(code, lambda lane: a.values.at((first + lane) * n_cols + group * 32), 32, x)
            return code.each(32, lambda i, total: (total + x[i] * x[i],), total)  # type: ignore[return-value]

        (total,) = code.loop(n_cols // 32, columns, code.floats(0))
        a.out.at(first * 4).store(total)

    tiles(code, a.n_blocks, tile)


MAGNITUDES = {2: largest_magnitude(HALF), 4: largest_magnitude(INT)}
