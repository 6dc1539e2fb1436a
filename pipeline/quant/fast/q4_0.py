"""Q4_0: 32 elements of 4 bits with one signed scale."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, Line, batches, largest_element, pack_nibbles, quantize_blocks
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import Code, Pointer, Value, smaller
from pipeline.quant.fast._weighted32 import linear

_BYTES, _QS = 18, 2


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_0_ref`."""

    def quantize(batch: Batch) -> None:
        quantize_blocks(code, batch, largest_element(code, batch) / -8, 8.5, _write)

    batches(code, a, _BYTES, quantize)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_0_impl`."""
    linear(code, a, 8, _BYTES)


def _write(x: Value, line: Line, place: Pointer) -> None:
    q = smaller((x * line.inverse + line.offset).cut_off(), 15)
    place.at(_QS).store(pack_nibbles(q))


KERNEL = Kernel("Q4_0", 1.5, _build, _build_weighted)
