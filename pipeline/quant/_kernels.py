"""What several kernels need: rounding, float16, checks.

Everything here is exact: it gives the bits that ggml's scalar C gives on a processor with IEEE float32 arithmetic and
no fused multiply-add.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from pipeline.quant._base import F32, I32, U16, U32, Index, Take, workspace

FP16_TILE: Final = 1 << 15
NEAREST_LIMIT: Final = np.float32(4194303.0)
_MAGIC: Final = np.float32(12582912.0)
_ABS: Final = np.uint32(0x7FFFFFFF)
_INF: Final = np.uint32(0x7F800000)
# An array, since the minimum with a scalar takes three times as long.
_SMALLEST_NORMAL_FP16: Final = np.full(FP16_TILE, 2.0**-14, np.float32)


def nearest_int(f: F32) -> I32:
    """Mirror ggml's `nearest_int`, for every float32, also where it is no rounding any more.

    Half to even up to 4194303 in magnitude; beyond that, and for infinities and NaN, what the bits happen to be.
    """
    bits = (f + _MAGIC).view(np.int32)
    return (bits & np.int32(0x007FFFFF)) - np.int32(0x00400000)


def first_of_magnitude(x: F32, amax: F32) -> F32:
    """Return for each column of *x*, (k, m), its first element whose magnitude is *amax*, (m,)."""
    rows = np.argmax(np.abs(x) == amax, axis=0)
    return np.asarray(x[rows, np.arange(x.shape[1])], dtype=np.float32)


def signed_largest(lo: F32, hi: F32) -> tuple[F32, F32, Index]:
    """Return (value, magnitude, ties) of the element of largest magnitude, from each column's minimum and maximum.

    Where both have that magnitude C takes the one that comes first; `ties` lists those columns, and the value there is
    the positive one.  Where all elements are zero the value is +0, as C's start value.
    """
    negated = np.negative(lo)
    amax = np.maximum(hi, negated)
    amax += np.float32(0)
    value = np.copysign(amax, hi + lo)
    ties = np.flatnonzero(hi == negated)
    if len(ties):
        value[ties] = amax[ties]
        ties = ties[amax[ties] > 0]
    return value, amax, ties


class _Fp16Buffers:
    def __init__(self, take: Take, n: int) -> None:
        self.magnitude: U32 = take((n,), np.uint32)
        self.normal: U32 = take((n,), np.uint32)
        self.subnormal: F32 = take((n,), np.float32)
        self.sign: U32 = take((n,), np.uint32)


def _fp32_to_fp16(x: F32, out: U16, buf: _Fp16Buffers) -> None:
    """Mirror `ggml_compute_fp32_to_fp16` for *x*, (n,), n up to FP16_TILE, into *out*, (n,).

    Normal numbers: round the bits half to even at bit 13 and move the exponent.  Subnormal numbers: an addition of 0.5
    has their unit in the last place, so it rounds them.  Either result is too small where the other one is right.
    """
    bits = x.view(np.uint32)
    np.bitwise_and(bits, _ABS, out=buf.magnitude)
    normal = buf.normal
    np.right_shift(buf.magnitude, np.uint32(13), out=normal)
    np.bitwise_and(normal, np.uint32(1), out=normal)
    normal += buf.magnitude
    signed = normal.view(np.int32)
    signed += np.int32(0x0FFF - (112 << 23))
    signed >>= np.int32(13)

    np.minimum(buf.magnitude.view(np.float32), _SMALLEST_NORMAL_FP16[: len(x)], out=buf.subnormal)
    buf.subnormal += np.float32(0.5)
    subnormal = buf.subnormal.view(np.int32)
    subnormal -= np.int32(0x3F000000)
    np.maximum(signed, subnormal, out=signed)

    np.bitwise_xor(bits, buf.magnitude, out=buf.sign)
    buf.sign >>= np.uint32(16)
    normal |= buf.sign
    np.copyto(out, normal, casting="unsafe")
    if len(x) and np.max(buf.magnitude) >= 0x477FF000:
        _fp16_beyond(bits, buf.magnitude, out)


def _fp16_beyond(bits: U32, magnitude: U32, out: U16) -> None:
    """Write the float16 values that are no finite numbers: overflow to infinity, NaN to the quiet NaN of its sign."""
    at = np.flatnonzero(magnitude >= 0x477FF000)
    special = np.where(magnitude[at] > _INF, np.uint32(0x7E00), np.uint32(0x7C00))
    out[at] = special | ((bits[at] >> np.uint32(16)) & np.uint32(0x8000))


def fp32_to_fp16_row(x: F32, out: U16) -> None:
    """Mirror `ggml_fp32_to_fp16_row` for a tile, (n,) with n up to FP16_TILE, in scratch memory of the thread."""
    _fp32_to_fp16(x, out, workspace.get(_Fp16Buffers, len(x)))


def fp16_bits(x: F32) -> U16:
    """Return the float16 bits of *x*, an array of up to FP16_TILE elements, as GGML_FP32_TO_FP16 gives them."""
    out = np.empty(x.size, np.uint16)
    _fp32_to_fp16(x.reshape(-1), out, _Fp16Buffers(np.empty, x.size))
    return out.reshape(x.shape)


@cache
def fp16_table() -> F32:
    """Return the float32 value of each of the 65536 float16 bit patterns, as `ggml_compute_fp16_to_fp32` gives it."""
    two_w = np.arange(1 << 16, dtype=np.uint32) << np.uint32(17)
    with np.errstate(all="ignore"):
        normal = ((two_w >> np.uint32(4)) + np.uint32(0xE0 << 23)).view(np.float32) * np.float32(2.0**-112)
    subnormal = ((two_w >> np.uint32(17)) | np.uint32(126 << 23)).view(np.float32) - np.float32(0.5)
    bits = np.where(two_w < (1 << 27), subnormal.view(np.uint32), normal.view(np.uint32))
    bits |= (np.arange(1 << 16, dtype=np.uint32) & np.uint32(0x8000)) << np.uint32(16)
    table = bits.view(np.float32)
    table.flags.writeable = False
    return table


def fp16_to_fp32(h: U16) -> F32:
    """Return the float32 values of float16 bits, an array of any shape."""
    return np.take(fp16_table(), h)
