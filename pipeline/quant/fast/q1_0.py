"""Q1_0: 128 signs with one scale, the mean magnitude."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, batches
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp32_to_fp16
from pipeline.quant.fast._tile import load_tile
from pipeline.quant.fast._vector import HALF, Code, Value, absolute

_SIZE, _BYTES, _QS = 128, 18, 2


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q1_0_ref`."""
    x, stored = code.rows(_SIZE), code.rows(1, HALF)

    def quantize(batch: Batch) -> None:
        load_tile(code, lambda lane: batch.x.at(lane * _SIZE), _SIZE, x)
        (sum_abs,) = code.each(_SIZE, lambda j, total: (total + absolute(x[j]),), code.floats(0))
        stored[0] = fp32_to_fp16(sum_abs / _SIZE).narrow(HALF)

        def one(k: Value) -> None:
            place = batch.block(k)
            place.store(stored.start.at(k * 2).load(HALF))
            for start in range(0, _SIZE, 32):
                place.at(_QS + start // 8).store((batch.elements(k, start) >= 0).mask())

        code.loop(code.lanes, one)

    batches(code, a, _BYTES, quantize, _SIZE)


KERNEL = Kernel("Q1_0", 2.5, _build)
