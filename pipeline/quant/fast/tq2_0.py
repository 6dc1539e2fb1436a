"""TQ2_0: super-blocks of 256 elements that are -1, 0 or 1 times one scale, in 2 bits each."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._ternary import Quants, ternary
from pipeline.quant.fast._vector import BYTE, Code, Pointer

_BYTES, _D = 66, 64


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_tq2_0_ref`."""
    ternary(code, a, (256, _BYTES), _D, _write)


def _write(quants: Quants, place: Pointer) -> None:
    """Of each 128 elements, those 32 apart share a byte."""
    for half in range(2):
        q = quants(half * 128, 32)
        for n in range(1, 4):
            q = q | (quants(half * 128 + n * 32, 32) << (2 * n))
        place.at(half * 32).store(q.narrow(BYTE))


KERNEL = Kernel("TQ2_0", 2.0, _build)
