"""Blocks in and out: a tile has one block in each lane, element i of all of them in row i."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.quant.fast._kernel import Arguments, Floats
from pipeline.quant.fast._vector import BYTE, HALF, INT, Code, Pointer, Rows, State, Value, where


def tiles(code: Code, n_blocks: Value, body: Callable[..., State | None], *state: Value) -> State:
    """Run *body* with the number of each tile's first block, and a *state* as `Code.loop` does.

    The last tile ends with the last block, so it may do again what the one before it has done; *n_blocks* must be at
    least the number of lanes.
    """
    lanes = code.lanes

    def one(i: Value, *inner: Value) -> State | None:
        first, last = i * lanes, n_blocks - lanes
        return body(where(first < last, first, last), *inner)

    return code.loop((n_blocks + (lanes - 1)) // lanes, one, *state)


def load_tile(code: Code, block: Callable[[int], Floats], n_elements: int, rows: Rows) -> None:
    """Fill *rows* with the float32 of the blocks whose places *block* gives for each lane: a transposition.

    Squares as wide as a register are turned by halving: each round interleaves the first half of the vectors with the
    second, and as many rounds as the width has bits bring every element to its place.
    """
    width = min(code.width, code.lanes)
    low = [n // 2 + (n % 2) * width for n in range(width)]
    high = [number + width // 2 for number in low]

    for lane in range(0, code.lanes, width):
        places = [block(lane + k) for k in range(width)]

        def square(i: Value, places: list[Floats] = places, lane: int = lane) -> None:
            vectors = [place.at(i * width).load(width) for place in places]
            for _ in range(width.bit_length() - 1):
                pairs = zip(vectors[: width // 2], vectors[width // 2 :], strict=True)
                vectors = [v for a, b in pairs for v in (a.shuffle(low, b), a.shuffle(high, b))]
            for k, vector in enumerate(vectors):
                rows.after(i * width + k).start.at(4 * lane).store(vector)

        code.loop(n_elements // width, square)


def store_words(code: Code, words: Rows, n_bytes: int, block: Callable[[Value], Pointer]) -> None:
    """Write *n_bytes* of each block: a tile's *words*, rows of int32, and of one more row the lower half, if odd."""
    start = words.start

    def one(lane: Value) -> None:
        source, target = start.at(lane * 4), block(lane)
        for at in range(0, n_bytes, 4):
            element = INT if at + 4 <= n_bytes else HALF
            target.at(at).store(source.at(at // 4 * words.row_bytes).load(element))

    code.loop(code.lanes, one)


def blocks(
    code: Code, a: Arguments, x: Rows, words: Rows, sizes: tuple[int, int], compute: Callable[[Value], None]
) -> None:
    """Quantize blocks tile by tile: *compute* turns *x* into *words*, given the first block.

    *sizes* are the elements and the bytes of a block.
    """
    n_elements, n_bytes = sizes

    def tile(first: Value) -> None:
        load_tile(code, lambda lane: a.values.at((first + lane) * n_elements), n_elements, x)
        compute(first)
        start = a.out.at(first * n_bytes)
        store_words(code, words, n_bytes, lambda lane: start.at(lane * n_bytes))

    tiles(code, a.n_blocks, tile)


def super_blocks(
    code: Code, a: Arguments, x: Rows, words: Rows, n_bytes: int, compute: Callable[[Value], None]
) -> None:
    """Do what `blocks` does for super-blocks of 256 elements that are zeros where all elements are, as in padding."""

    def tile(first: Value) -> None:
        load_tile(code, lambda lane: a.values.at((first + lane) * 256), 256, x)
        start = a.out.at(first * n_bytes)

        def whole() -> None:
            compute(first)
            store_words(code, words, n_bytes, lambda lane: start.at(lane * n_bytes))

        code.when(_is_zero(code, x, 256), lambda: _clear(code, code.lanes * n_bytes, start), whole)

    tiles(code, a.n_blocks, tile)


def load_importance(code: Code, a: Arguments, first: Value, rows: Rows, n: int = 256) -> None:
    """Fill *rows* with the importance of the *n* columns that each block of a tile covers."""
    start = Floats(a.importance)
    load_tile(code, lambda lane: start.at((first + lane) % a.blocks_per_row * n), n, rows)


def weigh(code: Code, x: Rows, importance: Rows, sigma2: Value, w: Rows, n: int) -> Value:
    """Write the weights `qw * sqrt(sigma2 + x*x)` of *n* elements to *w*, and give their sum."""

    def weight(i: Value) -> None:
        w[i] = importance[i] * (sigma2 + x[i] * x[i]).sqrt()

    code.each(n, weight)
    return code.each(n, lambda i, total: (total + w[i],), code.floats(0))[0]


def _clear(code: Code, n_bytes: int, start: Pointer) -> None:
    """Write zeros: *n_bytes*, a multiple of the lanes."""
    zeros = code.ints(0).narrow(BYTE)
    code.loop(n_bytes // code.lanes, lambda i: start.at(i * code.lanes).store(zeros))


def _is_zero(code: Code, rows: Rows, n: int) -> Value:
    """Say whether all elements of a tile are zeros, of whatever sign."""
    (seen,) = code.each(n, lambda i, seen: (seen | rows[i].bits(),), code.ints(0), unroll=8)
    return ((seen & 0x7FFFFFFF) != 0).mask() == 0


def join_bytes(parts: list[Value]) -> Value:
    """Join four values below 256 to a word, the first one lowest."""
    word = parts[0]
    for k, part in enumerate(parts[1:], 1):
        word = word | (part << (8 * k))
    return word


def pack_crumbs(code: Code, L: Rows, words: Rows) -> None:
    """Write the 256 quants *L*, of 2 bits, as 16 words: of each 128 elements, those 32 apart share a byte."""

    def half(n: Value) -> None:
        def word(i: Value) -> None:
            parts = []
            for k in range(4):
                byte = L[n * 128 + i * 4 + k]
                for q in range(1, 4):
                    byte = byte | (L[n * 128 + i * 4 + (32 * q + k)] << (2 * q))
                parts.append(byte)
            words[n * 8 + i] = join_bytes(parts)

        code.loop(8, word)

    code.loop(2, half)
