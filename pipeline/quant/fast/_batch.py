"""The types whose scale is found without a search: a batch has as many blocks as there are lanes.

First all blocks' extremes are found and gathered, one in each lane; then the scales of all blocks are computed as one
vector; then each block is quantized, in parts of 32 elements, with its own scale.  From `first_equal` on, a block has
one part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

from pipeline.quant.fast._kernel import Arguments, Floats
from pipeline.quant.fast._math import fp32_to_fp16
from pipeline.quant.fast._tile import tiles
from pipeline.quant.fast._vector import (
    BYTE,
    FLOAT,
    HALF,
    INDEX,
    Code,
    Pointer,
    Value,
    absolute,
    larger,
    smaller,
    where,
)

PART = 32
Fold = Callable[[Value, Value], Value]


class Batch(NamedTuple):
    """Where the blocks of a batch begin: *x* their elements, *size* for each, *out* their bytes, *n_bytes* for each."""

    x: Floats
    out: Pointer
    n_bytes: int
    size: int = PART

    def elements(self, k: Value | int, start: int = 0, n: int = PART) -> Value:
        """Load *n* elements of block *k* from its element *start* on, each in a lane."""
        return self.x.at(k * self.size + start).load(n)

    def block(self, k: Value | int) -> Pointer:
        """Give the place of block *k*."""
        return self.out.at(k * self.n_bytes)


def batches(code: Code, a: Arguments, n_bytes: int, quantize: Callable[[Batch], None], size: int = PART) -> None:
    """Run *quantize* for each batch of blocks of *size* elements and *n_bytes*."""

    def one(first: Value) -> None:
        quantize(Batch(a.values.at(first * size), a.out.at(first * n_bytes), n_bytes, size))

    tiles(code, a.n_blocks, one)


def extremes(code: Code, batch: Batch, prepare: Callable[[Value], Value], folds: tuple[Fold, ...]) -> list[Value]:
    """Fold each block's elements, as *prepare* gives them, by each of *folds*: one result per block and lane.

    Two vectors become one of half of each folded; which blocks meet when is chosen so that they end in their order.
    """
    n = code.lanes
    low = [i // 2 + (i % 2) * n for i in range(n)]
    high = [number + n // 2 for number in low]

    def halved(fold: Fold, value: Value, width: int) -> Value:
        while width > n:
            width //= 2
            parts = (value.shuffle([start + i for i in range(width)]) for start in (0, width))
            value = fold(*parts)
        return value

    def tree(blocks: range) -> list[Value]:
        if len(blocks) == 1:
            parts = [prepare(batch.elements(blocks[0], start)) for start in range(0, batch.size, PART)]
            return [halved(fold, reduce(fold, parts), PART) for fold in folds]
        pairs = zip(folds, tree(blocks[0::2]), tree(blocks[1::2]), strict=True)
        return [fold(a.shuffle(low, b), a.shuffle(high, b)) for fold, a, b in pairs]

    return tree(range(n))


def first_equal(code: Code, batch: Batch, values: Value, key: Callable[[Value], Value]) -> Value:
    """Give for each block its first element whose *key* is the block's one of *values*."""
    rows = code.rows(1)
    rows[0] = values

    def one(k: Value) -> None:
        place = rows.start.at(k * 4)
        is_equal = key(batch.elements(k)) == place.load(FLOAT).spread(PART)
        at = is_equal.mask().trailing_zeros().widen(INDEX)
        place.store(batch.x.at(k * PART + at).load())

    code.each(code.lanes, one)
    return rows[0]


def largest_element(code: Code, batch: Batch) -> Value:
    """Give for each block its first element of the largest magnitude; where all are zero, +0 as C's start value."""
    low, high = extremes(code, batch, lambda x: x, (smaller, larger))
    negated = -low
    rows = code.rows(1)
    rows[0] = where(high > negated, high, low)
    is_tie = (high == negated) & (high != 0)

    def look() -> None:
        rows[0] = first_equal(code, batch, larger(high, negated), absolute)

    code.when(is_tie.any(), look)
    return where(rows[0] == 0, 0, rows[0])


def smallest_and_range(code: Code, batch: Batch) -> tuple[Value, Value]:
    """Give for each block its smallest element, of zeros the first, and the largest one less that."""
    low, high = extremes(code, batch, lambda x: x, (smaller, larger))
    rows = code.rows(1)
    rows[0] = low

    def look() -> None:
        rows[0] = first_equal(code, batch, low, lambda x: x)

    code.when((low == 0).any(), look)
    # The sum with zero makes a difference of two zeros positive, as that of one and the same element is.
    return rows[0], high - rows[0] + 0.0


class Line(NamedTuple):
    """What quantizes the elements of a block: (x - low) * inverse + offset, in every lane of a block's vector."""

    low: Value
    inverse: Value
    offset: Value

    def __call__(self, x: Value) -> Value:
        """Give what is to be cut off."""
        return (x - self.low) * self.inverse + self.offset


def quantize_blocks(
    code: Code,
    batch: Batch,
    d: Value,
    offset: float,
    write: Callable[[Value, Line, Pointer], None],
    low: Value | None = None,
) -> None:
    """Mirror `id = d ? 1.0f/d : 0.0f` and the loop over elements: *write* is given x, its line and the place.

    Where 1/d overflows, or d does, C's conversion of the products to an integer gives 0 for every element: the line is
    0 there.
    """
    inverse = 1 / d
    is_sound = absolute(inverse * d) < float("inf")
    lines = code.rows(3)
    lines[0] = code.floats(0) if low is None else where(is_sound, low, 0)
    lines[1] = where(is_sound, inverse, 0)
    lines[2] = where(is_sound, code.floats(offset), where(d == 0, code.floats(offset), 0))
    stored = code.rows(2, HALF)
    for row, value in enumerate((d,) if low is None else (d, low)):
        stored[row] = fp32_to_fp16(value).narrow(HALF)

    def one(k: Value) -> None:
        place = batch.block(k)
        for row in range(1 if low is None else 2):
            place.at(2 * row).store(stored.start.at(k * 2 + row * stored.row_bytes).load(HALF))
        line = Line(*(lines.start.at(k * 4 + row * lines.row_bytes).load(FLOAT).spread(PART) for row in range(3)))
        write(batch.elements(k), line, place)

    code.each(code.lanes, one)


def pack_nibbles(q: Value) -> Value:
    """Join the low 4 bits of element j and of element j + 16, 32 lanes of int32, to 16 bytes."""
    low, high = (q.shuffle(list(range(start, start + 16))) for start in (0, 16))
    return ((low & 15) | (high << 4)).narrow(BYTE)
