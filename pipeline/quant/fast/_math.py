"""ggml's small functions on vectors: rounding and float16, with the bits that its C gives for every float32."""

from __future__ import annotations

from typing import Final, NamedTuple

from pipeline.quant.fast._vector import Value, larger, smaller, where

MAGIC: Final = 12582912.0  # 1.5 * 2**23: adding it moves the integer part into the low bits
NEAREST_LIMIT: Final = 4194303.0  # up to here `nearest_int` is a rounding
_MAGIC_BITS: Final = 0x4B400000
_MANTISSA: Final = 0x007FFFFF
_EXPONENT: Final = 0x4B000000  # that of 2**23, whose unit in the last place is 1


class Rounded(NamedTuple):
    """A clipped `nearest_int`, as MAGIC + l in float32."""

    shifted: Value

    def floats(self) -> Value:
        """Give l as float32."""
        return self.shifted - MAGIC

    def ints(self, low: int = 0) -> Value:
        """Give l - *low* as int32."""
        return self.shifted.bits() - (_MAGIC_BITS + low)


def nearest_int(f: Value) -> Value:
    """Mirror `nearest_int`: int32, half to even up to 4194303, beyond that and for NaN what the bits happen to be."""
    return ((f + MAGIC).bits() & _MANTISSA) - 0x00400000


def nearest_clipped(f: Value, low: int, high: int) -> Rounded:
    """Mirror `MAX(low, MIN(high, nearest_int(f)))`, for every float32.

    With the exponent of 2**23 put back, the bits that C looks at are a float32 again; as it is positive, they may be
    clipped as an integer, which is quicker.
    """
    kept = ((f + MAGIC).bits() & _MANTISSA) | _EXPONENT
    return Rounded(smaller(larger(kept, _MAGIC_BITS + low), _MAGIC_BITS + high).floats())


def nearest_below(f: Value, low: int) -> Rounded:
    """Do what `nearest_clipped` does for f from -NEAREST_LIMIT to less than high + 0.5."""
    return Rounded(larger(f + MAGIC, MAGIC + low))


def nearest_above(f: Value, high: int) -> Rounded:
    """Do it for f from low - 0.5, where low is even, to NEAREST_LIMIT."""
    return Rounded(smaller(f + MAGIC, MAGIC + high))


def fp32_to_fp16(x: Value) -> Value:
    """Mirror `ggml_compute_fp32_to_fp16`: the bits as int32.

    Normal numbers: round the bits half to even at bit 13 and move the exponent.  Subnormal numbers: an addition of 0.5
    has their unit in the last place, so it rounds them.  Either result is too small where the other one is right.
    """
    magnitude = x.bits() & 0x7FFFFFFF
    normal = (magnitude + ((magnitude >> 13) & 1) + (0x0FFF - (112 << 23))).arithmetic_shift(13)
    subnormal = (smaller(magnitude.floats(), 2.0**-14) + 0.5).bits() - 0x3F000000
    finite = larger(normal, subnormal)
    special = where(magnitude > 0x7F800000, x.bits().like(0x7E00), 0x7C00)
    return where(magnitude >= 0x477FF000, special, finite) | ((x.bits() >> 16) & 0x8000)


def fp16_to_fp32(h: Value) -> Value:
    """Mirror `ggml_compute_fp16_to_fp32` for bits in int32."""
    two_w = h << 17
    normal = ((two_w >> 4) + (0xE0 << 23)).floats() * 2.0**-112
    subnormal = ((two_w >> 17) | (126 << 23)).floats() - 0.5
    is_normal = (two_w >> 27) != 0
    return (where(is_normal, normal, subnormal).bits() | ((h & 0x8000) << 16)).floats()


def fp32_to_bf16(x: Value) -> Value:
    """Mirror `ggml_compute_fp32_to_bf16`: the bits as int32."""
    bits = x.bits()
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 64, rounded)
