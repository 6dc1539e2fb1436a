"""The promise: our bytes are llama.cpp's bytes, and our values its values, for every type we can write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline import quant
from pipeline.quant import BlockType

pytestmark = pytest.mark.native

F32 = NDArray[np.float32]
ALL = list(quant.types().values())
WITH_BLOCKS = [kind for kind in ALL if kind.block_size > 1]


def quantize(kind: BlockType, x: F32) -> NDArray[np.uint8]:
    """Quantize *x* with our kernels."""
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    kind.quantize_rows(x, out)
    return out


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_the_type_is_ggmls(kind: BlockType, libggml: Any) -> None:
    """Name, block size and bytes of a block are those of ggml's type of the same number."""
    assert kind.name == libggml.name(kind.id)
    assert kind.block_size == libggml.block_size(kind.id)
    assert kind.type_size == libggml.type_size(kind.id)


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_bytes_equal_the_reference(kind: BlockType, libggml: Any, hard_rows: dict[str, F32]) -> None:
    """Every data set gives the reference's bytes."""
    different = [
        name for name, x in hard_rows.items() if quantize(kind, x).tobytes() != libggml.quantize(kind.id, x).tobytes()
    ]
    assert different == []


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_bytes_equal_the_reference_in_one_tile(kind: BlockType, libggml: Any, hard_rows: dict[str, F32]) -> None:
    """Data sets side by side in one tile, easy and hard blocks together, give the reference's bytes."""
    x = np.concatenate(list(hard_rows.values())).reshape(-1, 256)
    x = np.random.default_rng(5).permutation(x).reshape(-1, 512)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("n_cols", [256, 768, 2560])
@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
def test_bytes_equal_the_reference_at_any_width(kind: BlockType, n_cols: int, libggml: Any) -> None:
    """Rows of any legal width give the reference's bytes."""
    x = np.random.default_rng(n_cols).standard_t(4, (7, n_cols)).astype(np.float32)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("kind", ALL, ids=str)
@given(bits=hnp.arrays(np.uint32, (2, 256), elements=st.integers(0, (1 << 32) - 1)))
def test_any_finite_bits_equal_the_reference(kind: BlockType, bits: NDArray[np.uint32], libggml: Any) -> None:
    """Whatever finite floats come in, the reference's bytes come out."""
    x = bits.view(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(-1.5))
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 31),
    exponents=st.tuples(st.integers(-149, 127), st.integers(-149, 127)),
    shift=st.sampled_from([0.0, 1.0, -1.0, -1000.0]),
)
def test_blocks_of_any_spread_equal_the_reference(
    kind: BlockType, seed: int, exponents: tuple[int, int], shift: float, libggml: Any
) -> None:
    """Sub-blocks of different magnitudes in one super-block give the reference's bytes."""
    rng = np.random.default_rng(seed)
    low, high = min(exponents), max(exponents)
    scale = np.exp2(rng.integers(low, high + 1, (64, 1)))
    x = np.clip((rng.uniform(-1, 1, (64, 16)) + shift) * scale, -3.4e38, 3.4e38).astype(np.float32).reshape(4, 256)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_conversions_equal_the_reference_on_every_special_value(name: str, libggml: Any) -> None:
    """All exponents, rounding positions, infinities and NaNs convert as in ggml."""
    kind = quant.get(name)
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (high[:, None] | low).view(np.float32)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_values_equal_the_reference(kind: BlockType, libggml: Any, hard_rows: dict[str, F32]) -> None:
    """Expanding quantized data gives the reference's floats, bit for bit."""
    data = libggml.quantize(kind.id, np.concatenate(list(hard_rows.values())))
    out = np.empty((len(data), 512), np.float32)
    kind.dequantize_rows(data, out)
    expected = libggml.dequantize(kind.id, data)
    is_nan = np.isnan(expected)
    assert np.array_equal(is_nan, np.isnan(out))
    assert np.array_equal(out.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_values_of_any_bytes_equal_the_reference(kind: BlockType, libggml: Any) -> None:
    """Random bytes expand to the reference's floats, the sign of zero included."""
    data = np.random.default_rng(3).integers(0, 256, (16, kind.row_bytes(512)), dtype=np.uint8)
    out = np.empty((16, 512), np.float32)
    kind.dequantize_rows(data, out)
    expected = libggml.dequantize(kind.id, data)
    finite = np.isfinite(expected)
    assert np.array_equal(out.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    assert np.array_equal(np.isnan(out), np.isnan(expected))


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_nonfinite_input_neither_fails_nor_warns(kind: BlockType) -> None:
    """Blocks with NaN and infinities pass through a kernel; refusing them is not its job."""
    x = np.zeros((4, 512), np.float32)
    x[0, ::7], x[1, 5], x[2, ::3], x[3] = np.nan, np.inf, -np.inf, np.nan
    assert quantize(kind, x).shape == (4, kind.row_bytes(512))
