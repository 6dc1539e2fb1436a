"""Q5_1: 32 elements of 5 bits with a scale and a minimum; the fifth bits lie apart."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, Line, batches, pack_nibbles, quantize_blocks, smallest_and_range
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import Code, Pointer, Value
from pipeline.quant.fast._weighted32 import affine

_BYTES, _QH, _QS = 24, 4, 8


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_1_ref`."""

    def quantize(batch: Batch) -> None:
        low, span = smallest_and_range(code, batch)
        quantize_blocks(code, batch, span / 31, 0.5, _write, low)

    batches(code, a, _BYTES, quantize)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_1_impl`."""
    affine(code, a, 31, _BYTES)


def _write(x: Value, line: Line, place: Pointer) -> None:
    q = line(x).cut_off()
    place.at(_QH).store(((q & 16) != 0).mask())
    place.at(_QS).store(pack_nibbles(q))


KERNEL = Kernel("Q5_1", 2.0, _build, _build_weighted)
