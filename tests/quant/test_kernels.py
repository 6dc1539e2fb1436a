"""The helpers of the kernels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quant import _search
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


def test_einsum_is_taken_only_where_it_rounds_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that multiplies and adds in one instruction, as on some processors, is found out."""

    def fused(subscripts: str, *factors: np.ndarray) -> np.ndarray:
        exact = np.prod([factor.astype(np.longdouble) for factor in factors], axis=0)
        total = np.zeros(exact.shape[1], np.float32)
        for row in exact:
            total = (total + row).astype(np.float32)
        assert subscripts.endswith("->j")
        return total

    monkeypatch.setattr(np, "einsum", fused)
    assert not _search._einsum_rounds.__wrapped__()


@pytest.mark.parametrize("m", [1, 2, 17, 300])
@pytest.mark.parametrize("rounds", [True, False])
def test_products_are_added_like_in_a_loop(monkeypatch: pytest.MonkeyPatch, m: int, rounds: bool) -> None:
    """Each column is the sum, from zero on, of products that are rounded from left to right."""
    if rounds and not _search._einsum_rounds():
        rounds = False
    monkeypatch.setattr(_search, "_einsum_rounds", lambda: rounds)
    a, b, c = np.random.default_rng(m).standard_normal((3, 32, m)).astype(np.float32)
    for factors in ((a, b), (a, a, c)):
        expected = np.zeros(m, np.float32)
        for rows in zip(*factors, strict=True):
            product = rows[0] * rows[1]
            expected = expected + (product * rows[2] if len(rows) > 2 else product)
        assert np.array_equal(_search.dot_columns(np.empty_like(a), *factors), expected)
