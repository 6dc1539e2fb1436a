"""Q4_1: 32 elements of 4 bits with a scale and a minimum."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, Line, batches, pack_nibbles, quantize_blocks, smallest_and_range
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import Code, Pointer, Value, smaller
from pipeline.quant.fast._weighted32 import affine

_BYTES, _QS = 20, 4


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_1_ref`."""

    def quantize(batch: Batch) -> None:
        low, span = smallest_and_range(code, batch)
        quantize_blocks(code, batch, span / 15, 0.5, _write, low)

    batches(code, a, _BYTES, quantize)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_1_impl`."""
    affine(code, a, 15, _BYTES)


def _write(x: Value, line: Line, place: Pointer) -> None:
    place.at(_QS).store(pack_nibbles(smaller(line(x).cut_off(), 15)))


KERNEL = Kernel("Q4_1", 2.0, _build, _build_weighted)
