"""The block types without a reference: blocks one can check by hand, and what must hold for all."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import quant
from pipeline.errors import FormatError, UnsupportedError, UsageError
from pipeline.quant import BlockType
from pipeline.quant._base import workspace
from pipeline.quant._native import NativeType

F32 = NDArray[np.float32]
ALL = [kind for kind in quant.types().values() if not isinstance(kind, NativeType)]
WITH_BLOCKS = [kind for kind in ALL if kind.block_size > 1]
WEIGHTED = [kind for kind in ALL if kind.is_weighted]
HALF_STEP = {
    "Q8_0": 1 / 127,
    "Q4_0": 1 / 8,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 31,
    "Q4_K": 1 / 7,
    "Q5_K": 1 / 15,
    "Q6_K": 1 / 20,
    "MXFP4": 1 / 4,
    "NVFP4": 1,  # small numbers are below its smallest scale
    "Q4_1": 1 / 15,
    "Q2_K": 1 / 2,
    "Q3_K": 1 / 3,
    "IQ4_NL": 1 / 8,
    "IQ4_XS": 1 / 6,
    "TQ1_0": 1 / 2,
    "TQ2_0": 1 / 2,
    "Q2_0": 1 / 2,
    "Q1_0": 1,
}


def quantize(kind: BlockType, x: F32) -> bytes:
    """Quantize rows with our kernels."""
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    kind.quantize_rows(x, out)
    return out.tobytes()


def dequantize(kind: BlockType, data: bytes, n_cols: int) -> F32:
    """Expand rows with our kernels."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, kind.row_bytes(n_cols))
    out = np.empty((len(rows), n_cols), np.float32)
    kind.dequantize_rows(rows, out)
    return out


def half(x: float) -> bytes:
    """Return the two bytes of a float16."""
    return struct.pack("<e", x)


def row(values: object) -> F32:
    """Return one row of float32."""
    return np.asarray(values, np.float32)[None]


def test_f32_is_the_values() -> None:
    """F32 keeps the bytes."""
    assert quantize(quant.get("F32"), row([1.0, -2.5])) == struct.pack("<2f", 1, -2.5)


def test_f16_rounds_half_to_even() -> None:
    """F16 is IEEE half precision: ties to even, subnormals, overflow to infinity, the sign of zero."""
    values = [1.0, -2.5, 65504.0, 65520.0, 2.0**-24, 2.0**-25, 3 * 2.0**-25, -0.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
    expected = np.array([0x3C00, 0xC100, 0x7BFF, 0x7C00, 1, 0, 2, 0x8000, 0x3C00, 0x3C02], "<u2")
    assert quantize(quant.get("F16"), row(values)) == expected.tobytes()


def test_bf16_rounds_half_to_even() -> None:
    """BF16 is the upper half of a float32: ties to even, NaN quiet."""
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F800001, 0x80000000], np.uint32)
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0x7FC0, 0x8000], "<u2")
    assert quantize(quant.get("BF16"), bits.view(np.float32)[None]) == expected.tobytes()


def test_q8_0_by_hand() -> None:
    """With a largest magnitude of 127 the scale is one and the quants are the rounded values, halves away from zero."""
    values = np.zeros(32)
    values[:6] = [127, -127, 0.5, -0.5, 2.5, -2.4]
    expected = np.zeros(32, np.int8)
    expected[:6] = [127, -127, 1, -1, 3, -2]
    assert quantize(quant.get("Q8_0"), row(values)) == half(1.0) + expected.tobytes()


def test_q4_0_by_hand() -> None:
    """With -8 as the largest magnitude the scale is one; element j and j + 16 share a byte."""
    values = np.tile(np.arange(-8, 8), 2)
    assert quantize(quant.get("Q4_0"), row(values)) == half(1.0) + bytes(j * 17 for j in range(16))


def test_q5_0_by_hand() -> None:
    """With -16 as the largest magnitude the scale is one; the upper 16 of 32 steps have the fifth bit."""
    values = np.arange(-16, 16)
    expected = half(1.0) + struct.pack("<I", 0xFFFF0000) + bytes(j * 17 for j in range(16))
    assert quantize(quant.get("Q5_0"), row(values)) == expected


def test_q5_1_by_hand() -> None:
    """Values from 3 to 34 have scale one and minimum three."""
    values = np.arange(3, 35)
    expected = half(1.0) + half(3.0) + struct.pack("<I", 0xFFFF0000) + bytes(j * 17 for j in range(16))
    assert quantize(quant.get("Q5_1"), row(values)) == expected


def test_q4_k_by_hand() -> None:
    """Sub-blocks of 0..15 need scale one, the largest 6-bit quant of the step 1/63, and no minimum."""
    values = np.tile(np.arange(32) % 16, 8)
    scales = bytes([63 | 0xC0] * 4 + [0] * 4 + [15] * 4)
    expected = half(1 / 63) + half(0.0) + scales + bytes(j % 16 * 17 for j in range(32)) * 4
    assert quantize(quant.get("Q4_K"), row(values)) == expected


def test_q5_k_by_hand() -> None:
    """Sub-blocks of 0..31 need scale one and no minimum; elements from 16 on have the fifth bit in every sub-block."""
    values = np.tile(np.arange(32), 8)
    scales = bytes([63 | 0xC0] * 4 + [0] * 4 + [15] * 4)
    high = bytes([0] * 16 + [0xFF] * 16)
    expected = half(1 / 63) + half(0.0) + scales + high + bytes(j % 16 * 17 for j in range(32)) * 4
    assert quantize(quant.get("Q5_K"), row(values)) == expected


def test_q6_k_by_hand() -> None:
    """Sub-blocks of -32, -30 ... -2 need scale one, -128 times the step -1/128; the quants are 0, 2 ... 30."""
    values = np.tile(np.arange(-32, 0, 2), 16)
    low = np.tile(np.arange(0, 32, 2) % 16 * 17, 8).astype(np.uint8).tobytes()
    high = np.tile(np.arange(0, 32, 2) // 16 * 0b01010101, 4).astype(np.uint8).tobytes()
    assert quantize(quant.get("Q6_K"), row(values)) == low + high + bytes([0x80] * 16) + half(-1 / 128)


@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
def test_zeros_stay_zeros(kind: BlockType) -> None:
    """A row of zeros expands to zeros."""
    assert not dequantize(kind, quantize(kind, np.zeros((1, 512), np.float32)), 512).any()


@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
@given(seed=st.integers(0, 1 << 31), exponent=st.integers(-8, 8))
def test_the_error_is_bounded(kind: BlockType, seed: int, exponent: int) -> None:
    """After the way there and back no element is off by more than a fixed part of its block's largest magnitude."""
    x = (np.random.default_rng(seed).uniform(-1, 1, (4, 256)) * 2.0**exponent).astype(np.float32)
    error = np.abs(dequantize(kind, quantize(kind, x), 256) - x).max()
    assert error <= HALF_STEP[kind.name] * 1.02 * np.abs(x).max()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
@given(seed=st.integers(0, 1 << 31))
def test_quantizing_again_changes_nothing(name: str, seed: int) -> None:
    """What came out of blocks goes into the same blocks."""
    kind = quant.get(name)
    data = quantize(kind, np.random.default_rng(seed).standard_normal((2, 256)).astype(np.float32))
    assert quantize(kind, dequantize(kind, data, 256)) == data


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_bytes_do_not_depend_on_the_tiling(kind: BlockType) -> None:
    """Rows give the same bytes alone and together, also where there are more than fit one inner tile."""
    n_rows = kind.tile_blocks * kind.block_size // 512 + 3
    x = np.random.default_rng(1).standard_t(3, (n_rows, 512)).astype(np.float32)
    x[1] = 0
    whole = quantize(kind, x)
    cuts = [0, 1, 2, 9, n_rows // 2, n_rows - 1, n_rows]
    assert whole == b"".join(quantize(kind, x[a:b]) for a, b in pairwise(cuts))


@pytest.mark.parametrize("kind", WEIGHTED, ids=str)
def test_weighted_bytes_do_not_depend_on_the_tiling(kind: BlockType) -> None:
    """Each row gets the importance of its columns, wherever an inner tile ends."""
    n_rows = kind.tile_blocks * kind.block_size // 1536 + 3
    rng = np.random.default_rng(1)
    x, importance = rng.standard_t(3, (n_rows, 1536)).astype(np.float32), rng.random(1536).astype(np.float32)

    def weighted(rows: F32) -> bytes:
        out = np.empty((len(rows), kind.row_bytes(1536)), np.uint8)
        kind.quantize_rows(rows, out, importance)
        return out.tobytes()

    assert weighted(x) == b"".join(weighted(x[a:b]) for a, b in pairwise([0, 1, 3, n_rows - 1, n_rows]))


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_threads_do_not_disturb_each_other(kind: BlockType) -> None:
    """Several threads at once give the bytes of one after another."""
    rng = np.random.default_rng(2)
    tiles = [rng.standard_normal((16, 512 + 256 * (i % 3))).astype(np.float32) for i in range(12)]
    alone = [quantize(kind, tile) for tile in tiles]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda tile: quantize(kind, tile), tiles)) == alone


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_the_callers_values_stay(kind: BlockType) -> None:
    """A kernel does not write to its input, which may be a read-only mapping."""
    x = np.random.default_rng(4).standard_normal((3, 512)).astype(np.float32)
    kept = x.copy()
    x.flags.writeable = False
    quantize(kind, x)
    assert np.array_equal(x, kept)


def test_the_callers_settings_stay() -> None:
    """What NumPy is told about its loops and about warnings is told it for the kernels alone."""
    before = np.getbufsize(), np.geterr()
    quantize(quant.get("Q4_K"), np.ones((1, 256), np.float32))
    assert (np.getbufsize(), np.geterr()) == before


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_input_need_not_be_aligned(kind: BlockType) -> None:
    """Rows at any address give the same bytes: files place tensors as they like."""
    x = np.random.default_rng(6).standard_normal((3, 512)).astype(np.float32)
    raw = np.zeros(x.nbytes + 4, np.uint8)
    raw[4:] = x.view(np.uint8).reshape(-1)
    assert quantize(kind, raw[4:].view(np.float32).reshape(x.shape)) == quantize(kind, x)


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_no_rows_are_no_bytes(kind: BlockType) -> None:
    """An empty tensor is an empty result."""
    assert quantize(kind, np.empty((0, 512), np.float32)) == b""


def test_scratch_memory_is_bounded() -> None:
    """All kernels of a thread share one buffer of four megabytes."""
    for kind in ALL:
        quantize(kind, np.zeros((kind.tile_blocks * kind.block_size // 512 + 1, 512), np.float32))
    assert workspace.n_bytes <= 4 << 20


@pytest.mark.parametrize(("name", "n_cols", "n_bytes"), [("Q4_K", 512, 288), ("Q8_0", 64, 68), ("F16", 3, 6)])
def test_row_bytes(name: str, n_cols: int, n_bytes: int) -> None:
    """A row takes the bytes of its blocks."""
    assert quant.get(name).row_bytes(n_cols) == n_bytes


@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
def test_a_width_without_whole_blocks_is_refused(kind: BlockType) -> None:
    """A row that cannot be cut into blocks is an error that names the block size."""
    with pytest.raises(FormatError, match=f"a multiple of {kind.block_size} columns"):
        kind.row_bytes(kind.block_size + 1)


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.zeros((2, 64), np.float64), np.zeros((2, 68), np.uint8)),
        (np.zeros((64, 2), np.float32).T, np.zeros((2, 68), np.uint8)),
        (np.zeros(64, np.float32), np.zeros(68, np.uint8)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 68), np.int8)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 136), np.uint8)[:, ::2]),
        (np.zeros((2, 64), np.float32), np.zeros((2, 67), np.uint8)),
        (np.zeros((2, 64), np.float32), np.zeros((1, 68), np.uint8)),
    ],
)
def test_other_arrays_are_refused(x: F32, out: NDArray[np.uint8]) -> None:
    """Another type, shape or memory order is an error, in both directions, never a silent conversion."""
    with pytest.raises(UsageError):
        quant.get("Q8_0").quantize_rows(x, out)
    with pytest.raises(UsageError):
        quant.get("Q8_0").dequantize_rows(out, x)


@pytest.mark.parametrize("kind", ALL, ids=str)
@pytest.mark.parametrize(
    "importance", [np.ones(511, np.float32), np.ones(512, np.float64), np.ones((1, 512), np.float32),
                   np.ones(1024, np.float32)[::2]], ids=["short", "double", "two dimensions", "strided"]
)  # fmt: skip
def test_another_importance_is_refused(kind: BlockType, importance: F32) -> None:
    """The importance is one contiguous float32 for each column, whether the type uses it or not."""
    x = np.zeros((2, 512), np.float32)
    with pytest.raises(UsageError, match="importance"):
        kind.quantize_rows(x, np.zeros((2, kind.row_bytes(512)), np.uint8), importance)


def test_an_unknown_type_is_refused() -> None:
    """Asking for a type without a kernel names the ones there are."""
    with pytest.raises(UnsupportedError, match="Q4_1, Q4_K, Q5_0"):
        quant.get("Q9_X")


def test_types_are_called_by_their_own_name() -> None:
    """The table's keys are the types' names."""
    assert {name: kind.name for name, kind in quant.types().items()} == {name: name for name in quant.types()}
