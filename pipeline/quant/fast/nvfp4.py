"""NVFP4: 64 elements of 4 bits (E2M1), and for each 16 of them a scale of 8 bits (E4M3 without sign)."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._tile import blocks, join_bytes
from pipeline.quant.fast._vector import INT, Code, Value, absolute, larger, smaller, where

_BYTES, _QS = 36, 1  # the quants begin with word 1
_LARGEST = 0x7E
_VALUES = (1, 2, 3, 4, 6, 8, 12)  # twice those of E2M1


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_nvfp4_ref`."""
    x, words, scales = code.rows(64), code.rows(_BYTES // 4, INT), code.rows(4, INT)

    def sub_block(s: Value) -> None:
        xb = x.after(s * 16)
        (amax,) = code.each(16, lambda j, amax: (larger(absolute(xb[j]), amax),), code.floats(0))
        ue = _to_ue4m3(amax / 6)
        scales[s] = ue
        d = _from_ue4m3(ue)
        multiples = [d * value for value in _VALUES]
        parts = [_nearest(xb[j], multiples) | (_nearest(xb[j + 8], multiples) << 4) for j in range(8)]
        words[s * 2 + _QS], words[s * 2 + (_QS + 1)] = join_bytes(parts[:4]), join_bytes(parts[4:])

    def compute(_first: Value) -> None:
        code.loop(4, sub_block)
        words[0] = join_bytes([scales[s] for s in range(4)])

    blocks(code, a, x, words, (64, _BYTES), compute)


def _to_ue4m3(x: Value) -> Value:
    """Mirror `ggml_fp32_to_ue4m3` for numbers that are not negative: halves round up."""
    x = smaller(x, 448)
    bits = x.bits()
    exponent = (bits >> 23) - 120
    # Three bits of the mantissa, rounded by the next one; a carry goes into the exponent.
    rounded = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
    normal = where(rounded < 15 << 3, rounded, _LARGEST)
    return where(exponent > 0, normal, smaller((x * 512 + 0.5).cut_off(), 7))


def _from_ue4m3(ue: Value) -> Value:
    """Mirror `ggml_ue4m3_to_fp32`, which gives half the number, for the values of E2M1 are doubled."""
    normal = ((ue + (119 << 3)) << 20).floats()
    return where(ue < 8, ue.to_float() * 2.0**-10, normal)


def _nearest(x: Value, multiples: list[Value]) -> Value:
    """Mirror `best_index_mxfp4` for the scale's *multiples*: of equally near ones the first, so never -0.

    An error can only be below all before it if it is below the last one: they fall, then rise.
    """
    magnitude = absolute(x)
    index, last = x.bits().like(0), magnitude
    for number, multiple in enumerate(multiples, 1):
        error = absolute(multiple - magnitude)
        index = where(error < last, number, index)
        last = error
    return where(index != 0, index | ((x.bits() >> 28) & 8), 0)


KERNEL = Kernel("NVFP4", 60, _build)
