"""What the tests of block quantization share: the reference library, and data that is hard to quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.runtime.llama import LlamaInstall

F32 = NDArray[np.float32]
N_COLS = 512


@pytest.fixture(scope="session")
def libggml(llama: LlamaInstall, oracle: Callable[[str], ModuleType]) -> Any:
    """The reference: libggml-base of the vendored llama.cpp."""
    return oracle("libggml").LibGgml(llama.library("ggml-base"))


@pytest.fixture(scope="session")
def hard_rows() -> dict[str, F32]:
    """Data sets by name, float32 (n_rows, 512)."""
    rng = np.random.default_rng(20260101)
    with np.errstate(all="ignore"):
        return {name: _rows(values) for name, values in _data_sets(rng)}


def _rows(values: Any) -> F32:
    rows: F32 = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, N_COLS)
    assert np.isfinite(rows).all()
    return rows


def _data_sets(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    normal = _rows(rng.standard_normal((24, N_COLS)) * 0.02)
    yield "normal", normal
    yield "heavy-tailed", rng.standard_t(2, normal.shape)
    yield "truncated to BF16", (normal.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    yield "rounded to F16", normal.astype(np.float16)
    yield from _constants(rng)
    yield from _sparse(rng, normal)
    yield from _ties(rng)
    yield from _magnitudes(rng)
    yield from _sub_blocks(rng, normal)


def _constants(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    for value in (0.0, -0.0, 1.0, -1.0, 3e-5, -1e-20, 1e-42, -1e-42, 65504.0, 3e38, -3e38):
        yield f"constant {value}", np.full((2, N_COLS), value)
    yield "nearly constant, negative", -1 + rng.integers(-1, 2, (16, N_COLS)) * 6e-8
    yield "nearly constant, positive", 1 + rng.integers(-3, 4, (16, N_COLS)) * 1.2e-7
    yield "nearly constant, far out", -1000 + rng.standard_normal((16, N_COLS)) * 1e-3
    scale = np.exp(rng.uniform(-80, 80, (16 * N_COLS // 32, 1)))
    yield "nearly constant, all sizes", -scale * (1 + rng.integers(0, 3, (len(scale), 32)) * 1.2e-7)


def _sparse(rng: np.random.Generator, normal: F32) -> Iterator[tuple[str, Any]]:
    yield "sparse", np.where(rng.random(normal.shape) < 0.9, 0, normal)
    yield (
        "sparse with both zeros",
        np.where(rng.random(normal.shape) < 0.97, rng.choice([0.0, -0.0], normal.shape), normal),
    )
    one = (rng.integers(0, 32, (16 * N_COLS // 32, 1)) == np.arange(32)) * rng.standard_normal((16 * N_COLS // 32, 1))
    yield "one-hot", one
    yield "one-hot rows", np.eye(16, N_COLS, 77) * -3
    yield "rectified", np.maximum(normal, 0)
    yield "rectified, negative", -np.maximum(normal, 0)
    yield "all positive", np.abs(normal)
    yield "all negative", -np.abs(normal)
    yield "shifted down", normal - 0.5
    yield "shifted up", normal + 0.5


def _ties(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    amplitude = np.repeat(rng.standard_normal(16 * N_COLS // 32), 32)
    yield "alternating", np.where(np.arange(len(amplitude)) % 2, 1, -1) * amplitude
    yield "signs", rng.choice([-1, 1], (16, N_COLS))
    yield "integers", rng.integers(-8, 9, (16, N_COLS))
    yield "halves", rng.integers(-127, 128, (16, N_COLS)) / 2
    yield "ties of float16", np.concatenate([rng.integers(0, 1 << 17, (8, N_COLS)) * 2.0**-25,
                                             1 + rng.integers(0, 1 << 12, (8, N_COLS)) * 2.0**-12])  # fmt: skip


def _magnitudes(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    for exponent in range(-45, 38):
        yield f"about 1e{exponent}", rng.standard_normal((2, N_COLS)) * 10.0**exponent
    yield "up to the largest", rng.uniform(-1, 1, (16, N_COLS)) * 3.4e38
    yield "around float16's end", rng.choice([-65504, 65504, 65519, 65520, 65536, 70000, 1e6], (16, N_COLS))
    yield "all magnitudes", rng.standard_normal((16, N_COLS)) * np.exp(rng.uniform(-87, 80, (16, N_COLS)))
    for width in (16, 32, 256):
        scale = np.exp(rng.uniform(-87, 80, (32 * N_COLS // width, 1)))
        yield f"a magnitude per {width}", rng.standard_normal((len(scale), width)) * scale
    bits = rng.integers(0, 1 << 32, (32, N_COLS), dtype=np.uint32).view(np.float32)
    yield "any bits", np.where(np.isfinite(bits), bits, 1)


def _sub_blocks(rng: np.random.Generator, normal: F32) -> Iterator[tuple[str, Any]]:
    for width in (16, 32):
        for factor in (0.0, 1e-9, 1e-4, 1e-3):
            blocks = normal.reshape(-1, 256 // width, width).copy()
            blocks[np.arange(len(blocks)), rng.integers(0, 256 // width, len(blocks))] *= factor
            yield f"one sub-block of {width} times {factor}", blocks
    blocks = normal.reshape(-1, 8, 32).copy()
    blocks[:, 3] = -3
    yield "one constant sub-block", blocks
