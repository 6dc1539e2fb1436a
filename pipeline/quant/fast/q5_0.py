"""Q5_0: 32 elements of 5 bits with one signed scale; the fifth bits lie apart."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, Line, batches, largest_element, pack_nibbles, quantize_blocks
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import Code, Pointer, Value, smaller
from pipeline.quant.fast._weighted32 import linear

_BYTES, _QH, _QS = 22, 2, 6


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_0_ref`."""

    def quantize(batch: Batch) -> None:
        quantize_blocks(code, batch, largest_element(code, batch) / -16, 16.5, _write)

    batches(code, a, _BYTES, quantize)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_0_impl`."""
    linear(code, a, 16, _BYTES)


def _write(x: Value, line: Line, place: Pointer) -> None:
    q = smaller((x * line.inverse + line.offset).cut_off(), 31)
    place.at(_QH).store((q > 15).mask())
    place.at(_QS).store(pack_nibbles(q))


KERNEL = Kernel("Q5_0", 1.5, _build, _build_weighted)
