"""What the types with one scale, the largest magnitude, and the quants -1, 0, 1 share."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.quant.fast._batch import Batch, batches, extremes
from pipeline.quant.fast._kernel import Arguments
from pipeline.quant.fast._math import fp32_to_fp16
from pipeline.quant.fast._vector import FLOAT, HALF, INT, Code, Pointer, Value, absolute, larger, where

Quants = Callable[[int, int], Value]
Write = Callable[[Quants, Pointer], None]


def ternary(code: Code, a: Arguments, sizes: tuple[int, int], d_at: int, write: Write, unsound: int = 1) -> None:
    """Mirror the types' common part: `d = amax`, `id = d ? 1.0f/d : 0.0f`, and the loops over elements.

    *sizes* are the elements and the bytes of a block, and *d_at* is where d is stored.  *write* is given what returns n
    quants from element `start` on, int32 from 0 to 2, and the place of the block.  Where 1/d overflows, every quant is
    *unsound*: what C's conversion of infinities and NaN comes to.
    """
    n_elements, n_bytes = sizes

    def quantize(batch: Batch) -> None:
        (d,) = extremes(code, batch, absolute, (larger,))
        inverse = 1 / d
        is_sound = inverse < float("inf")
        inverses, zeros, stored = code.rows(1), code.rows(1, INT), code.rows(1, HALF)
        inverses[0] = where(is_sound, inverse, 0)
        zeros[0] = where(is_sound | (d == 0), code.ints(1), unsound)
        stored[0] = fp32_to_fp16(d).narrow(HALF)

        def one(k: Value) -> None:
            inverse, zero = inverses.start.at(k * 4).load(FLOAT), zeros.start.at(k * 4).load(INT)

            def quants(start: int, n: int) -> Value:
                ratio = batch.elements(k, start, n) * inverse.spread(n)
                return where(ratio >= 0.5, 2, where(ratio <= -0.5, 0, zero.spread(n)))

            place = batch.block(k)
            place.at(d_at).store(stored.start.at(k * 2).load(HALF))
            write(quants, place)

        code.loop(code.lanes, one)

    batches(code, a, n_bytes, quantize, n_elements)
