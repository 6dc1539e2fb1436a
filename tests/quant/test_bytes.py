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
from pipeline.quant import BlockType, _search
from pipeline.quant._native import NativeType
from pipeline.quant.fast import kernels

pytestmark = pytest.mark.native

F32 = NDArray[np.float32]
EVERY = list(quant.types().values())
ALL = [kind for kind in EVERY if not isinstance(kind, NativeType)]  # the others: test_native.py
WITH_BLOCKS = [kind for kind in ALL if kind.block_size > 1]
WEIGHTED = [kind for kind in ALL if kind.is_weighted]
UNWEIGHTED = [kind for kind in ALL if not kind.is_weighted]


class Quantizer:
    """One engine as a function."""

    def __init__(self, engine: quant.Engine) -> None:
        self._engine = engine

    def __call__(self, kind: BlockType, x: F32, importance: F32 | None = None) -> NDArray[np.uint8]:
        """Quantize *x*."""
        out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
        self._engine.quantize_rows(kind, x, out, importance)
        return out

    def values(self, kind: BlockType, data: NDArray[np.uint8], n_cols: int) -> F32:
        """Expand *data*, rows of *n_cols* values."""
        out = np.empty((len(data), n_cols), np.float32)
        (self._engine.decoder(kind) or kind.dequantize_rows)(data, out)
        return out


quantize = Quantizer(quant.get_engine("numpy", {}))
FAST = Quantizer(quant.get_engine("fast", {}))


def by_engine(kinds: list[BlockType], task: str = "build") -> Any:
    """Run a test for each of *kinds* with NumPy's kernel, and with the compiled one if the type has one for *task*."""
    compiled = {name for name, kernel in kernels().items() if getattr(kernel, task)}
    cases = [pytest.param(quantize, kind, id=f"{kind}-numpy") for kind in kinds]
    cases += [pytest.param(FAST, kind, id=f"{kind}-fast") for kind in kinds if kind.name in compiled]
    return pytest.mark.parametrize(("quantize", "kind"), cases)


def importances(n_cols: int) -> dict[str, F32]:
    """Return importances by name: of equal columns, unequal ones, none at all, some, and of any size."""
    rng = np.random.default_rng(n_cols)
    made = {
        "ones": np.ones(n_cols),
        "unequal": np.exp(2 * rng.standard_normal(n_cols)),
        "zeros": np.zeros(n_cols),
        "sparse": np.where(rng.random(n_cols) < 0.7, 0, rng.random(n_cols)),
        "any size": np.exp(rng.uniform(-60, 60, n_cols)),
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


@pytest.mark.parametrize("kind", EVERY, ids=str)
def test_the_type_is_ggmls(kind: BlockType, libggml: Any) -> None:
    """Name, block size and bytes of a block are those of ggml's type of the same number."""
    assert kind.name == libggml.name(kind.id)
    assert kind.block_size == libggml.block_size(kind.id)
    assert kind.type_size == libggml.type_size(kind.id)


@by_engine(ALL)
def test_bytes_equal_the_reference(
    quantize: Quantizer, kind: BlockType, libggml: Any, hard_rows: dict[str, F32]
) -> None:
    """Every data set gives the reference's bytes."""
    different = [
        name for name, x in hard_rows.items() if quantize(kind, x).tobytes() != libggml.quantize(kind.id, x).tobytes()
    ]
    assert different == []


@by_engine(ALL)
def test_bytes_equal_the_reference_in_one_tile(
    quantize: Quantizer, kind: BlockType, libggml: Any, hard_rows: dict[str, F32]
) -> None:
    """Data sets side by side in one tile, easy and hard blocks together, give the reference's bytes."""
    x = np.concatenate(list(hard_rows.values())).reshape(-1, 256)
    x = np.random.default_rng(5).permutation(x).reshape(-1, 512)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


def equal_blocks(rng: np.random.Generator) -> F32:
    """Return rows of which every second block of 32 and every second super-block has one value all over."""
    values = np.array([0.0, -0.0, -0.5, 1e-20, 3e38, 0.25], np.float32)
    x = rng.standard_normal((96, 768)).astype(np.float32)
    for width in (32, 256):
        blocks = x[: len(x) // 2] if width == 32 else x[len(x) // 2 :]
        blocks.reshape(-1, 2, width)[:, 0] = rng.choice(values, (blocks.size // width // 2, 1))
    return x


@by_engine(WITH_BLOCKS)
def test_equal_blocks_give_the_reference_bytes(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """Blocks with one value all over, which are made only once, have the reference's bytes wherever they lie."""
    x = equal_blocks(np.random.default_rng(8))
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine(WEIGHTED, "build_weighted")
def test_weighted_equal_blocks_give_the_reference_bytes(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """With an importance matrix it depends on their columns what becomes of them."""
    x = equal_blocks(np.random.default_rng(9))
    for importance in importances(768).values():
        assert quantize(kind, x, importance).tobytes() == libggml.quantize(kind.id, x, importance).tobytes()


@pytest.mark.parametrize("kind", [kind for kind in WEIGHTED if kind.name[-1] == "K"], ids=str)
def test_sums_without_einsum_give_the_reference_bytes(
    kind: BlockType, libggml: Any, hard_rows: dict[str, F32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `np.einsum` rounds in another way, NumPy's other functions give the same bytes."""
    monkeypatch.setattr(_search, "_einsum_rounds", lambda: False)
    x, importance = np.concatenate(list(hard_rows.values())), importances(512)["unequal"]
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()
    assert quantize(kind, x, importance).tobytes() == libggml.quantize(kind.id, x, importance).tobytes()


@pytest.mark.parametrize("n_cols", [256, 768, 2560])
@by_engine(WITH_BLOCKS)
def test_bytes_equal_the_reference_at_any_width(
    quantize: Quantizer, kind: BlockType, n_cols: int, libggml: Any
) -> None:
    """Rows of any legal width give the reference's bytes."""
    x = np.random.default_rng(n_cols).standard_t(4, (7, n_cols)).astype(np.float32)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine(ALL)
@given(bits=hnp.arrays(np.uint32, (2, 256), elements=st.integers(0, (1 << 32) - 1)))
def test_any_finite_bits_equal_the_reference(
    quantize: Quantizer, kind: BlockType, bits: NDArray[np.uint32], libggml: Any
) -> None:
    """Whatever finite floats come in, the reference's bytes come out."""
    x = bits.view(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(-1.5))
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine(WITH_BLOCKS)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 31),
    exponents=st.tuples(st.integers(-149, 127), st.integers(-149, 127)),
    shift=st.sampled_from([0.0, 1.0, -1.0, -1000.0]),
)
def test_blocks_of_any_spread_equal_the_reference(
    quantize: Quantizer, kind: BlockType, seed: int, exponents: tuple[int, int], shift: float, libggml: Any
) -> None:
    """Sub-blocks of different magnitudes in one super-block give the reference's bytes."""
    rng = np.random.default_rng(seed)
    low, high = min(exponents), max(exponents)
    scale = np.exp2(rng.integers(low, high + 1, (64, 1)))
    x = np.clip((rng.uniform(-1, 1, (64, 16)) + shift) * scale, -3.4e38, 3.4e38).astype(np.float32).reshape(4, 256)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("name", importances(512))
@by_engine(WEIGHTED, "build_weighted")
def test_weighted_bytes_equal_the_reference(
    quantize: Quantizer, kind: BlockType, name: str, libggml: Any, hard_rows: dict[str, F32]
) -> None:
    """With an importance matrix every data set gives the reference's bytes, alone and among the others."""
    importance = importances(512)[name]
    x = np.concatenate(list(hard_rows.values()))
    owner = np.repeat(list(hard_rows), [len(rows) for rows in hard_rows.values()])
    is_other = quantize(kind, x, importance) != libggml.quantize(kind.id, x, importance)
    assert sorted(set(owner[is_other.any(axis=1)])) == []


@pytest.mark.parametrize("n_cols", [256, 768, 2560])
@by_engine(WEIGHTED, "build_weighted")
def test_weighted_bytes_equal_the_reference_at_any_width(
    quantize: Quantizer, kind: BlockType, n_cols: int, libggml: Any
) -> None:
    """Rows of any legal width are weighed by their own mean square and columns, as in the reference."""
    x = np.random.default_rng(n_cols).standard_t(4, (7, n_cols)).astype(np.float32)
    for importance in importances(n_cols).values():
        assert quantize(kind, x, importance).tobytes() == libggml.quantize(kind.id, x, importance).tobytes()


@by_engine([quant.get("MXFP4")])
def test_exponents_equal_the_reference_around_every_power_of_two(
    quantize: Quantizer, kind: BlockType, libggml: Any
) -> None:
    """Where the logarithm of the largest magnitude is rounded to a whole number, the exponent is the reference's."""
    powers = np.concatenate([1 << np.arange(23), np.arange(1, 256) << 23])
    steps = powers[:, None] + np.arange(-64, 8)
    largest = steps[(steps >= 0) & (steps < 0xFF << 23)].astype(np.uint32).view(np.float32)
    rows = np.random.default_rng(6).uniform(-1, 1, (len(largest), 32)).astype(np.float32) * largest[:, None]
    rows[:, 9] = largest
    x = np.resize(rows, (len(rows) // 8 + 1, 256))
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine(WEIGHTED, "build_weighted")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 31),
    exponents=st.tuples(st.integers(-149, 127), st.integers(-149, 127)),
    kept=st.sampled_from([1.0, 0.5, 0.05]),
)
def test_weighted_blocks_of_any_spread_equal_the_reference(
    quantize: Quantizer, kind: BlockType, seed: int, exponents: tuple[int, int], kept: float, libggml: Any
) -> None:
    """Elements of any magnitude, zeros of both signs among them, and importances with zeros give the same bytes."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.integers(min(exponents), max(exponents) + 1, (64, 1)))
    x = np.clip(rng.standard_normal((64, 16)) * scale, -3.4e38, 3.4e38) * (rng.random((64, 16)) < kept)
    importance = (rng.exponential(1, 256) * (rng.random(256) < kept)).astype(np.float32)
    rows = x.astype(np.float32).reshape(4, 256)
    assert quantize(kind, rows, importance).tobytes() == libggml.quantize(kind.id, rows, importance).tobytes()


@by_engine(UNWEIGHTED)
def test_other_types_ignore_the_importance(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """A type that libggml does not weigh gives the same bytes with and without importance, there and here."""
    x = np.random.default_rng(8).standard_normal((3, 512)).astype(np.float32)
    importance = importances(512)["unequal"]
    assert quantize(kind, x, importance).tobytes() == libggml.quantize(kind.id, x).tobytes()
    assert libggml.quantize(kind.id, x, importance).tobytes() == libggml.quantize(kind.id, x).tobytes()


def wild_case(seed: int) -> tuple[F32, F32]:
    """Return rows and an importance of the kinds that differ where one step of C is missing: few and far numbers."""
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(-149, 128, 2))
    width = int(rng.choice([16, 32, 64, 256]))
    scale = np.exp2(rng.integers(low, high + 1, (2048 // width, 1)).astype(float))
    x = (rng.standard_normal((2048 // width, width)) + rng.choice([0, 0, 1, -1, -1000])) * scale
    x *= rng.random(x.shape) < rng.choice([1, 0.5, 0.05, 0.9])
    importance = rng.exponential(1, 512) * (rng.random(512) < rng.choice([1, 0.5, 0.05]))
    rows = np.clip(x, -3.4e38, 3.4e38).astype(np.float32).reshape(-1, 512)
    return rows, importance.astype(np.float32)


@by_engine(WEIGHTED, "build_weighted")
def test_wild_weighted_cases_equal_the_reference(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """Sums that cancel, scales that wrap, means that overflow: the reference's bytes, also where they make no sense."""
    different = []
    for seed in (*range(20), 164, 165, 231):  # in the last three a scale wraps
        x, importance = wild_case(seed)
        if quantize(kind, x, importance).tobytes() != libggml.quantize(kind.id, x, importance).tobytes():
            different.append(seed)
    assert different == []


@by_engine(WEIGHTED, "build_weighted")
def test_sums_without_end_equal_the_reference(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """Importances whose sums overflow, so that scales are NaN and zeros of both signs, give the reference's bytes."""
    rng = np.random.default_rng(12)
    for _ in range(8):
        x = (rng.standard_normal((64, 256)) * 0.02).astype(np.float32)
        importance = rng.choice([0, 1e38, 1e-38], 256).astype(np.float32)
        assert quantize(kind, x, importance).tobytes() == libggml.quantize(kind.id, x, importance).tobytes()


def test_a_single_column_is_added_in_order(libggml: Any) -> None:
    """One sub-block alone in a search gives the reference's bytes: its sums are not added pairwise."""
    rng = np.random.default_rng(11)
    kind = quant.get("Q4_K")  # of these trials, seven differ if one column is added as NumPy likes to
    for _ in range(1500):
        x = np.zeros((1, 256), np.float32)
        x[0, 64:96] = rng.standard_normal(32)
        assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine([quant.get("F16"), quant.get("BF16")])
def test_conversions_equal_the_reference_on_every_special_value(
    quantize: Quantizer, kind: BlockType, libggml: Any
) -> None:
    """All exponents, rounding positions, infinities and NaNs convert as in ggml."""
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (high[:, None] | low).view(np.float32)
    assert quantize(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@by_engine(ALL, "build_decode")
def test_values_equal_the_reference(
    quantize: Quantizer, kind: BlockType, libggml: Any, hard_rows: dict[str, F32]
) -> None:
    """Expanding quantized data gives the reference's floats, bit for bit."""
    data = libggml.quantize(kind.id, np.concatenate(list(hard_rows.values())))
    out = quantize.values(kind, data, 512)
    expected = libggml.dequantize(kind.id, data)
    is_nan = np.isnan(expected)
    assert np.array_equal(is_nan, np.isnan(out))
    assert np.array_equal(out.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


@by_engine(ALL, "build_decode")
def test_values_of_any_bytes_equal_the_reference(quantize: Quantizer, kind: BlockType, libggml: Any) -> None:
    """Random bytes expand to the reference's floats, the sign of zero included."""
    data = np.random.default_rng(3).integers(0, 256, (16, kind.row_bytes(512)), dtype=np.uint8)
    out = quantize.values(kind, data, 512)
    expected = libggml.dequantize(kind.id, data)
    finite = np.isfinite(expected)
    assert np.array_equal(out.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    assert np.array_equal(np.isnan(out), np.isnan(expected))


@by_engine(ALL)
def test_nonfinite_input_neither_fails_nor_warns(quantize: Quantizer, kind: BlockType) -> None:
    """Blocks with NaN and infinities pass through a kernel; refusing them is not its job."""
    x = np.zeros((4, 512), np.float32)
    x[0, ::7], x[1, 5], x[2, ::3], x[3] = np.nan, np.inf, -np.inf, np.nan
    assert quantize(kind, x).shape == (4, kind.row_bytes(512))
