"""Errors of encoded weights: the figures mean what they say, and no number of threads changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import flow, measure, quant
from pipeline import plan as plans
from pipeline.checkpoint import TensorReader
from pipeline.encode import Output, encode
from pipeline.measure import ErrorMeter, TensorError

Measured = Callable[..., dict[str, dict[str, TensorError]]]


def _encoded(kind: str, values: np.ndarray) -> np.ndarray:
    out = np.empty((len(values), quant.get(kind).row_bytes(values.shape[1])), np.uint8)
    quant.get(kind).quantize_rows(values, out)
    return out


@pytest.mark.parametrize("kind", sorted(name for name, kind in quant.types().items() if kind.tile_blocks > 256))
def test_figures_are_those_of_float64(kind: str) -> None:
    """RMSE, largest error, relative error and cosine equal a plain computation on the decoded values."""
    values = np.random.default_rng(1).normal(0, 0.02, (40, 512)).astype(np.float32)
    encoded = _encoded(kind, values)
    decoded = np.empty_like(values)
    quant.get(kind).dequantize_rows(encoded, decoded)
    x, y = values.astype(np.float64), decoded.astype(np.float64)
    found = measure.error_of(measure.measure_rows(quant.get(kind), values, encoded))
    assert found.n_rows == 40
    assert found.rmse == pytest.approx(np.sqrt(((x - y) ** 2).mean()), rel=1e-6)
    assert found.max_abs == pytest.approx(np.abs(x - y).max(), rel=1e-6)
    assert found.relative == pytest.approx(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()), rel=1e-6)
    assert found.cosine == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()), rel=1e-6)


def test_a_changed_row_is_seen() -> None:
    """The error of bytes that belong to other weights is as large as the weights."""
    values = np.random.default_rng(2).normal(0, 1, (8, 256)).astype(np.float32)
    encoded = _encoded("Q8_0", values)
    good = measure.error_of(measure.measure_rows(quant.get("Q8_0"), values, encoded))
    bad = measure.error_of(measure.measure_rows(quant.get("Q8_0"), values, encoded[::-1].copy()))
    assert good.cosine is not None
    assert good.cosine > 0.9999
    assert bad.relative is not None
    assert bad.relative > 1


@pytest.mark.parametrize(
    ("kind", "scale", "cosine", "relative"),
    [("Q8_0", 0.0, 1.0, 0.0), ("Q8_0", 1e-30, None, 1.0), ("BF16", 2.0**100, 1.0, 0.0)],
)
def test_extreme_weights_have_figures(kind: str, scale: float, cosine: float | None, relative: float) -> None:
    """Zeros, weights too small for a float16 scale and huge ones: no division by zero, no overflow."""
    values = (np.random.default_rng(3).choice([-1.0, 1.0], (4, 32)) * scale).astype(np.float32)
    sums = measure.measure_rows(quant.get(kind), values, _encoded(kind, values))
    found = measure.error_of(sums)
    assert (found.cosine, found.relative) == (cosine, relative)
    assert np.isfinite([found.rmse, found.max_abs]).all()


@given(n_rows=st.integers(1, 3000), every=st.integers(1, 64), cut=st.integers(1, 500))
def test_sampled_rows_do_not_depend_on_tiles(n_rows: int, every: int, cut: int) -> None:
    """Tiles of any height choose the same rows: row 0, and at most one of each group."""
    whole = measure.sampled_rows(0, n_rows, every)
    tiles = [measure.sampled_rows(at, min(at + cut, n_rows), every) for at in range(0, n_rows, cut)]
    assert np.concatenate(tiles).tolist() == whole.tolist()
    assert whole[0] == 0
    assert len(set((whole // every).tolist())) == len(whole) >= n_rows // every


@pytest.fixture
def measured(demo: Path, tmp_path: Path, silent_log: Any) -> Measured:
    """Encode the demo in some recipes and return each one's errors by tensor."""

    def run(*recipes: str, every: int = 1, threads: int = 2) -> dict[str, dict[str, TensorError]]:
        with flow.prepare(str(demo), silent_log) as prepared:
            planned = [plans.make_plan(prepared.blueprint, recipe) for recipe in recipes]
        outputs = [Output(plan, tmp_path / f"{number}.gguf") for number, plan in enumerate(planned)]
        meter = ErrorMeter(every)
        with TensorReader() as reader:
            encode(outputs, reader, threads=threads, meter=meter)
        return {
            plan.recipe: {t.name: error for t, error in zip(plan.tensors, meter.errors(plan), strict=True)}
            for plan in planned
        }

    return run


@pytest.mark.parametrize("every", [1, 32])
def test_threads_do_not_change_figures(every: int, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker or three, in small tiles: the same figures to the last digit."""
    monkeypatch.setattr("pipeline.encode.TILE_ELEMENTS", 1 << 13)
    assert measured("Q4_K_M", every=every, threads=1) == measured("Q4_K_M", every=every, threads=3)


def test_more_bits_are_nearer(measured: Measured) -> None:
    """Q8_0 is nearer to the source than Q4_0 in every matrix; what keeps its values has no error and all its rows."""
    found = measured("Q4_0", "Q8_0", "BF16")
    for name, error in found["Q4_0"].items():
        if name.endswith(("_norm.weight", ".bias")):
            assert (error.rmse, error.max_abs, error.relative, error.cosine) == (0, 0, 0, 1)
        else:
            assert error.rmse > found["Q8_0"][name].rmse > 0
    assert all(error.rmse == 0 for error in found["BF16"].values())
    assert {error.n_rows for error in found["BF16"].values()} == {1, 1024, 256, 128, 768}


def test_a_sample_is_near_the_whole(measured: Measured) -> None:
    """One row of 32 gives each tensor's RMSE within a tenth."""
    whole, sample = measured("Q4_K_M")["Q4_K_M"], measured("Q4_K_M", every=32)["Q4_K_M"]
    assert sample["token_embd.weight"].n_rows == 32
    for name, error in whole.items():
        assert sample[name].rmse == pytest.approx(error.rmse, rel=0.1)
        assert sample[name].max_abs <= error.max_abs
