"""The vector layer: each operation gives NumPy's bits, on every kind of number and on every width of register."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.quant._kernels import fp16_table
from pipeline.quant._kernels import nearest_int as numpy_nearest_int
from pipeline.quant.fast import Processor, host, kernels
from pipeline.quant.fast._compile import assembly, load_uncached
from pipeline.quant.fast._kernel import Arguments
from pipeline.quant.fast._math import (
    fp16_to_fp32,
    fp32_to_bf16,
    fp32_to_fp16,
    nearest_above,
    nearest_below,
    nearest_clipped,
    nearest_int,
)
from pipeline.quant.fast._tile import load_tile, tiles
from pipeline.quant.fast._vector import (
    BYTE,
    FLOAT,
    HALF,
    INT,
    Code,
    Value,
    absolute,
    larger,
    smaller,
    where,
)

Array = NDArray[Any]

HERE = host()
# Code for any processor of the kind must run here: on x86-64 what this one has not is left out.
PROCESSORS = [HERE, Processor(HERE.cpu, HERE.features, 4), Processor(HERE.cpu, HERE.features, 8)]

SPECIAL = np.array(
    [
        *(0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38),
        *(4194303.0, 4194304.0, 12582912.0, 2.0**-14, 2.0**-15, 2.0**-24, 2.0**-25, 65504.0, 65519.0, 65520.0, 1e-30),
        *(0.1, 1 / 3, 7.0, -8.0, 100.25),
    ],
    np.float32,
)


def pairs() -> tuple[Array, Array]:
    """Return all pairs of special numbers, and some of any bits."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1024, dtype=np.uint32).view(np.float32)
    a, b = np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))
    return np.concatenate([a, bits[:512]]), np.concatenate([b, bits[512:]])


def apply(operation: Callable[..., Value], *inputs: Array, element: Any = FLOAT, processor: Processor = HERE) -> Array:
    """Run *operation* on vectors of one or two arrays of float32 and return its 32 bits each."""
    out = np.empty(len(inputs[0]), np.uint32)

    def build(code: Code, a: Arguments) -> None:
        def one(first: Value) -> None:
            places = (a.x, a.importance)[: len(inputs)]
            result = operation(*(place.at(first * 4).load(element, code.lanes) for place in places))
            a.out.at(first * 4).store(result)

        tiles(code, a.n_blocks, one)

    addresses = [array.ctypes.data for array in inputs] + [0] * (2 - len(inputs))
    load_uncached(build, processor)(*addresses, 0, out.ctypes.data, len(out), 1)
    return out


def same(found: Array, expected: Array) -> None:
    """Compare bits; any NaN is as good as another."""
    expected = np.ascontiguousarray(expected)
    is_nan = np.isnan(expected) if expected.dtype == np.float32 else np.zeros(len(expected), bool)
    assert np.array_equal(np.isnan(found.view(np.float32)) & is_nan, is_nan)
    assert np.array_equal(found[~is_nan], expected.view(np.uint32)[~is_nan])


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: str(p.width))
@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_arithmetic_is_ieee(name: str, processor: Processor) -> None:
    """Sums, differences, products and quotients are rounded as float32, special numbers included."""
    a, b = pairs()
    function = getattr(operator, name)
    with np.errstate(all="ignore"):
        same(apply(function, a, b, processor=processor), function(a, b))


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_are_those_of_c(name: str) -> None:
    """A comparison with NaN is false, but for `!=`; zeros of both signs are equal."""
    a, b = pairs()
    function = getattr(operator, name)
    same(apply(lambda x, y: where(function(x, y), x.bits().like(1), 0), a, b), function(a, b).astype(np.uint32))


def test_smaller_and_larger_give_the_second_of_equals() -> None:
    """They are C's `a < b ? a : b` and `a > b ? a : b`, for zeros and NaN too."""
    a, b = pairs()
    same(apply(smaller, a, b), np.where(a < b, a, b))
    same(apply(larger, a, b), np.where(a > b, a, b))


def test_unary_operations() -> None:
    """Negation, magnitude and square root are exact on every number."""
    a = np.concatenate(pairs())
    with np.errstate(all="ignore"):
        same(apply(operator.neg, a), -a)
        same(apply(absolute, a), np.abs(a))
        same(apply(lambda x: x.sqrt(), a), np.sqrt(a))


def test_products_and_sums_are_not_fused() -> None:
    """a*b + c is rounded twice, also where one rounding would give another number."""
    a, b = (np.random.default_rng(seed).standard_normal(4096).astype(np.float32) for seed in range(2))
    once = (a.astype(np.float64) * b + a).astype(np.float32)
    assert (once != a * b + a).any()
    same(apply(lambda x, y: x * y + x, a, b), a * b + a)
    same(apply(lambda x, y: x * y - x, a, b), a * b - a)


def test_integers() -> None:
    """Bit operations, shifts, signs and conversions are those of int32."""
    a = np.random.default_rng(1).integers(-(1 << 31), 1 << 31, 512).astype(np.int32)
    a[:4] = [0, -1, 2**31 - 1, -(2**31)]
    for operation, expected in (
        (lambda x: (x & 0xFF) | 0x100, (a & 255) | 256),
        (lambda x: x ^ 5, a ^ 5),
        (lambda x: x << 3, a << 3),
        (lambda x: x >> 3, a.view(np.uint32) >> np.uint32(3)),
        (lambda x: x.arithmetic_shift(3), a >> 3),
        (lambda x: where(x < 7, x, 7), np.minimum(a, 7)),
        (lambda x: x.to_float(), a.astype(np.float32)),
        (lambda x: x.narrow(HALF).widen(INT), a & 0xFFFF),
        (lambda x: x.narrow(BYTE).widen(INT), a & 0xFF),
    ):
        same(apply(operation, a.view(np.float32), element=INT), expected)
    f = np.random.default_rng(2).uniform(-(2**30), 2**30, 512).astype(np.float32)
    same(apply(lambda x: x.cut_off(), f), f.astype(np.int32))


def test_rounding_is_nearest_int_for_every_number() -> None:
    """Both forms give what the C function gives, outside the range where it is a rounding too."""
    a = np.concatenate([*pairs(), np.linspace(-40, 40, 2048, dtype=np.float32), np.float32([-4194305, 8388609, 1e9])])
    with np.errstate(all="ignore"):
        expected = numpy_nearest_int(a)
    same(apply(nearest_int, a), expected)
    for low, high in ((0, 15), (-32, 31)):
        clipped = np.clip(expected, low, high)
        same(apply(lambda x, low=low, high=high: nearest_clipped(x, low, high).ints(), a), clipped)
        same(apply(lambda x, low=low, high=high: nearest_clipped(x, low, high).ints(low), a), clipped - low)
        same(apply(lambda x, low=low, high=high: nearest_clipped(x, low, high).floats(), a), clipped.astype(np.float32))


@pytest.mark.parametrize("high", [3, 15, 31])
def test_rounding_with_one_bound_is_that_with_two(high: int) -> None:
    """Where nothing is beyond the other bound, leaving it out changes nothing."""
    f = np.concatenate([np.linspace(-high - 1, high + 1, 4095, dtype=np.float32), np.float32([0.5, -0.5])])
    below = np.concatenate([f[f < high + 0.5], np.float32([-4194303, -1e6, np.nextafter(np.float32(high + 0.5), 0)])])
    above = np.concatenate([-f[f < high + 1.5], np.float32([4194303, 1e6, -high - 1.5])])
    for values, bounds, rounded in (
        (below, (0, high), lambda x: nearest_below(x, 0)),
        (above, (-high - 1, high), lambda x: nearest_above(x, high)),
    ):
        clipped = np.clip(np.rint(values), *bounds).astype(np.float32) + np.float32(0)  # no negative zeros
        same(apply(lambda x, rounded=rounded: rounded(x).floats(), values), clipped)


def test_all_and_any_look_at_every_lane() -> None:
    """One lane is enough to make the one true, and the other false."""
    lanes = HERE.lanes
    a = np.zeros((lanes + 2, lanes), np.float32)
    a[:lanes] = np.eye(lanes)
    a[-1] = 1
    one = apply(lambda x: where((x == 1).any(), x.code.index(1), 0).narrow(INT).spread(lanes), a.reshape(-1))
    every = apply(lambda x: where((x == 1).all(), x.code.index(1), 0).narrow(INT).spread(lanes), a.reshape(-1))
    assert one.reshape(-1, lanes)[:, 0].tolist() == [1] * lanes + [0, 1]
    assert every.reshape(-1, lanes)[:, 0].tolist() == [0] * lanes + [0, 1]


def test_float16_and_bfloat16() -> None:
    """Numbers are rounded half to even, subnormals and overflow included; float16 comes back as it was."""
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001], np.uint32)
    a = (high[:, None] | low).reshape(-1).view(np.float32)
    a = a[~np.isnan(a)]
    with np.errstate(all="ignore"):
        same(apply(fp32_to_fp16, a), a.astype(np.float16).view(np.uint16).astype(np.uint32))
    bits = a.view(np.uint32).astype(np.uint64)
    same(apply(fp32_to_bf16, a), ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32))
    halves = np.arange(1 << 16, dtype=np.uint32)
    same(apply(fp16_to_fp32, halves.view(np.float32), element=INT), fp16_table())


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: str(p.width))
def test_a_tile_is_the_transposed_blocks(processor: Processor) -> None:
    """Element i of the block in lane j stands in row i, lane j."""
    n = processor.lanes
    x = np.arange(n * 256, dtype=np.float32).reshape(n, 256)
    out = np.empty((256, n), np.float32)

    def build(code: Code, a: Arguments) -> None:
        rows = code.rows(256)
        load_tile(code, lambda lane: a.values.at(lane * 256), 256, rows)
        code.loop(256, lambda i: a.out.at(i * (4 * n)).store(rows[i]))

    load_uncached(build, processor)(x.ctypes.data, 0, 0, out.ctypes.data, n, 1)
    assert np.array_equal(out, x.T)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: str(p.width))
def test_rows_are_cut_into_registers(processor: Processor) -> None:
    """What is written through the narrow rows, from any row on, is what the wide ones have."""
    out = np.zeros((2, processor.lanes), np.int32)

    def build(code: Code, a: Arguments) -> None:
        wide = code.rows(3, INT)
        parts = wide.after(1).registers()
        for row in range(2):
            for k, part in enumerate(parts):
                part[row] = part[row].like(10 * row + k)
            a.out.at(row * wide.row_bytes).store(wide[row + 1])

    load_uncached(build, processor)(0, 0, 0, out.ctypes.data, 0, 0)
    first = np.repeat([0, 1], processor.width)
    assert np.array_equal(out, [first, first + 10])


def test_loops_and_branches() -> None:
    """State goes round a loop, unrolled or not, none at all too; a branch runs one of its sides."""
    out = np.zeros(4, np.int32)

    def build(code: Code, a: Arguments) -> None:
        (total,) = code.loop(10, lambda i, total: (total + i,), code.index(0))
        (again,) = code.each(12, lambda i, total: (total + i,), code.index(0), unroll=3)
        (none,) = code.loop(a.blocks_per_row, lambda i, total: (total + i + 5,), code.index(7))
        for place, value in enumerate((total, again, none)):
            a.out.at(4 * place).store(value.narrow(INT))
        code.when(
            total > 44, lambda: a.out.at(12).store(total.narrow(INT)), lambda: a.out.at(12).store(none.narrow(INT))
        )

    load_uncached(build, HERE)(0, 0, 0, out.ctypes.data, 0, 0)
    assert out.tolist() == [45, 66, 7, 45]


BUILDS = [
    pytest.param(build, id=f"{name}-{task}")
    for name, kernel in kernels().items()
    for task, build in (("plain", kernel.build), ("weighted", kernel.build_weighted), ("decode", kernel.build_decode))
    if build is not None
]


@pytest.mark.parametrize("build", BUILDS)
def test_no_kernel_has_a_fused_multiply_add(build: Any) -> None:
    """Nothing in the machine code rounds a product and a sum at once, though this processor could."""
    text = assembly(build, HERE)
    assert re.search(r"\bret", text)
    assert not re.search(r"\bv?f[n]?m(add|sub|la|ls)|\bfml[as]", text)
