"""Q2_0: 64 elements of 2 bits, -1 to 2 times one scale."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._ternary import Quants, ternary
from pipeline.quant.fast._vector import BYTE, Code, Pointer

_BYTES, _D, _QS = 18, 0, 2


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q2_0_ref`: 2 never comes out, and where 1/d overflows all are -1."""
    ternary(code, a, (64, _BYTES), _D, _write, unsound=0)


def _write(quants: Quants, place: Pointer) -> None:
    """Four elements one after another share a byte."""
    q = quants(0, 64)
    byte = q.shuffle(list(range(0, 64, 4)))
    for n in range(1, 4):
        byte = byte | (q.shuffle(list(range(n, 64, 4))) << (2 * n))
    place.at(_QS).store(byte.narrow(BYTE))


KERNEL = Kernel("Q2_0", 6, _build)
