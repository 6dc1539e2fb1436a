"""MXFP4: 32 elements of 4 bits (E2M1) with one scale that is a power of two (E8M0)."""

from __future__ import annotations

import math

from pipeline.quant.fast._batch import PART, Batch, batches, extremes, pack_nibbles
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import BYTE, FLOAT, Code, Value, absolute, larger, smaller, where

_BYTES, _QS = 17, 1
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5)  # between the values of E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_mxfp4_ref`."""
    exponents, inverses, caps = code.rows(1, BYTE), code.rows(1), code.rows(1)

    def quantize(batch: Batch) -> None:
        (amax,) = extremes(code, batch, absolute, (larger,))
        e = _exponent(amax)
        exponents[0], inverses[0] = e.narrow(BYTE), _inverse(e)
        # In C the scale 2**126 times 4 overflows, so numbers that are nearly as large are taken for 3.
        caps[0] = where(e == 253, code.floats(3), 6)

        def one(k: Value) -> None:
            place = batch.block(k)
            inverse, cap = (row.start.at(k * 4).load(FLOAT).spread(PART) for row in (inverses, caps))
            place.store(exponents.start.at(k).load(BYTE))
            place.at(_QS).store(pack_nibbles(_nearest(batch.elements(k) * inverse, cap)))

        code.each(code.lanes, one)

    batches(code, a, _BYTES, quantize)


def _exponent(amax: Value) -> Value:
    """Mirror `(uint8_t) (floorf(log2f(amax)) - 2 + 127)`, which wraps for the smallest numbers.

    The exponent's bits are the floor, but where amax is so near the next power of two that the logarithm is rounded to
    it: there the logarithm is the larger one less the relative distance divided by ln 2.
    """
    is_subnormal = amax < 2.0**-126
    bits = where(is_subnormal, amax * 2.0**24, amax).bits()
    below = (bits >> 23) - where(is_subnormal, bits.like(127 + 24), 127)
    distance = (0x800000 - (bits & 0x7FFFFF)).to_float() * (2.0**-24 / math.log(2))
    above = (below + 1).to_float()
    floor = where(above - distance == above, below + 1, below)
    return where(amax > 0, (floor + 125) & 0xFF, 0)


def _inverse(e: Value) -> Value:
    """Give 1 divided by the scale, 2**(e - 127), exactly; for the two largest scales 0, which comes to the same.

    An exponent that has wrapped stands for a scale beside which all elements are as nothing.
    """
    return (larger(254 - e, 0) << 23).floats()


def _nearest(x: Value, cap: Value) -> Value:
    """Mirror `best_index_mxfp4` for elements in units of the scale: of equally near values the first, so never -0.

    As the scale is a power of two, C's differences are exact where they decide.  *cap* is the largest value.
    """
    magnitude, index = smaller(absolute(x), cap), x.bits().like(0)
    for middle in _MIDDLES:
        index = where(magnitude > middle, index + 1, index)
    return where(index != 0, index | ((x.bits() >> 28) & 8), 0)


KERNEL = Kernel("MXFP4", 60, _build)
