"""TQ1_0: super-blocks of 256 elements that are -1, 0 or 1 times one scale, five of them in a byte."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._ternary import Quants, ternary
from pipeline.quant.fast._vector import BYTE, Code, Pointer

_BYTES, _D = 54, 52
# First element, first byte, elements in a byte, bytes.
_GROUPS = ((0, 0, 5, 32), (160, 32, 5, 16), (240, 48, 4, 4))


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_tq1_0_ref`."""
    ternary(code, a, (256, _BYTES), _D, _write)


def _write(quants: Quants, place: Pointer) -> None:
    """Up to five quants are one number below 243, stretched to a byte by a division rounded up."""
    for element, at, n_quants, n_bytes in _GROUPS:
        q = quants(element, n_bytes)
        for n in range(1, 5):
            q = (q << 1) + q
            if n < n_quants:
                q = q + quants(element + n * n_bytes, n_bytes)
        place.at(at).store(((q * 256 + 242) // 243).narrow(BYTE))


KERNEL = Kernel("TQ1_0", 1.7, _build)
