"""Q8_0: 32 elements of 8 bits with one scale."""

from __future__ import annotations

from pipeline.quant.fast._batch import Batch, Line, batches, extremes, quantize_blocks
from pipeline.quant.fast._decode import decoding, load_bytes, load_half, store_line, with_sign
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._vector import BYTE, Code, Pointer, Value, absolute, larger

_BYTES, _QS = 34, 2
_SIGN = -0x80000000
_JUST_BELOW_HALF = 0x3EFFFFFF  # the largest float32 below one half


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q8_0_ref`."""

    def quantize(batch: Batch) -> None:
        (amax,) = extremes(code, batch, absolute, (larger,))
        quantize_blocks(code, batch, amax / 127, 0, _write)

    batches(code, a, _BYTES, quantize)


def _write(x: Value, line: Line, place: Pointer) -> None:
    """Cutting off after an addition of almost one half, with the sign of x, is `roundf` up to 2**22."""
    scaled = x * line.inverse
    half = ((scaled.bits() & _SIGN) | _JUST_BELOW_HALF).floats()
    place.at(_QS).store((scaled + half).cut_off().narrow(BYTE))


def _decode(block: Pointer, out: Pointer) -> None:
    """Mirror `dequantize_row_q8_0`."""
    store_line(out, 0, with_sign(load_bytes(block.at(_QS))), load_half(block))


KERNEL = Kernel("Q8_0", 2.0, _build, build_decode=decoding(32, _BYTES, _decode))
