"""Blocks back to float32: one after another, the elements that share a scale side by side."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.quant.fast._kernel import Arguments, Build
from pipeline.quant.fast._math import fp16_to_fp32
from pipeline.quant.fast._vector import BYTE, HALF, INT, Code, Pointer, Value

N = 32  # elements that are decoded at once


def decoding(n_elements: int, n_bytes: int, block: Callable[[Pointer, Pointer], None]) -> Build:
    """Return what decodes blocks of so many elements and bytes; *block* is given where one is, and where it goes."""

    def build(code: Code, a: Arguments) -> None:
        code.loop(a.n_blocks, lambda i: block(a.x.at(i * n_bytes), a.out.at(i * (4 * n_elements))))

    return build


def load_half(place: Pointer) -> Value:
    """Load a float16 as a scalar of float32."""
    return fp16_to_fp32(place.load(HALF).widen(INT))


def load_bytes(place: Pointer) -> Value:
    """Load 32 bytes as int32."""
    return place.load(BYTE, N).widen(INT)


def with_sign(byte: Value) -> Value:
    """Give the signed numbers that the low bytes of int32 are."""
    return (byte << 24).arithmetic_shift(24)


def store_line(place: Pointer, number: int, q: Value, scale: Value, minimum: Value | None = None) -> None:
    """Write `scale*q - minimum` as the 32 elements *number* of a block; *scale* and *minimum* are scalars."""
    values = scale.spread(N) * q.to_float()
    place.at(number * N * 4).store(values if minimum is None else values - minimum.spread(N))
