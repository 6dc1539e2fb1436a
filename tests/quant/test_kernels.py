"""The helpers of the kernels."""

from __future__ import annotations

import numpy as np

from pipeline.quant._kernels import fp16_bits, fp16_table, nearest_int, signed_largest


def test_nearest_int_rounds_half_to_even_within_its_range() -> None:
    """Within four million in magnitude it is a rounding."""
    f = np.array([0.5, 1.5, -0.5, -1.5, 2.4, 4194303.0, -4194303.0], np.float32)
    assert nearest_int(f).tolist() == [0, 2, 0, -2, 2, 4194303, -4194303]


def test_nearest_int_is_what_the_bits_are_beyond_it() -> None:
    """Out of range, infinity and NaN give the numbers that the C function gives."""
    f = np.array([np.inf, -np.inf, np.nan, 2.0**30], np.float32)
    # 2**30 swallows all but the uppermost bits of the addend, 98304 units of 128.
    assert nearest_int(f).tolist() == [-4194304, -4194304, 0, -4194304 + 98304]


def test_float16_there_and_back() -> None:
    """Every float16 that is no NaN survives the way to float32 and back."""
    table = fp16_table().reshape(4, -1)
    pattern = np.arange(1 << 16, dtype=np.uint16).reshape(4, -1)
    for values, bits in zip(table, pattern, strict=True):
        numbers = ~np.isnan(values)
        assert np.array_equal(fp16_bits(values[numbers]), bits[numbers])
        assert np.array_equal(values[numbers], bits.view(np.float16)[numbers].astype(np.float32))


def test_signed_largest_tells_where_the_order_matters() -> None:
    """The element of largest magnitude has its sign; equal magnitudes are ties; zeros are positive and no ties."""
    low = np.array([-3, -1, -2, -0.0, 1], np.float32)
    high = np.array([2, 5, 2, -0.0, 4], np.float32)
    value, magnitude, ties = signed_largest(low, high)
    assert value.tolist() == [-3, 5, 2, 0, 4]
    assert not np.signbit(value[3])
    assert magnitude.tolist() == [3, 5, 2, 0, 4]
    assert ties.tolist() == [2]
