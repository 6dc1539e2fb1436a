"""Types that libggml encodes: tile by tile, on any number of threads, its bytes are those of one call.

libggml computes the grids of these types when they are first wanted, which takes up to ten seconds of one core, and
keeps them; both sides use one library in one process, so each grid is computed once (IQ1_S and IQ1_M share theirs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import quant
from pipeline.checkpoint import TensorReader
from pipeline.encode import derive
from pipeline.errors import ToolError, UsageError
from pipeline.gguf import tensor_bytes
from pipeline.quant._native import NativeType
from pipeline.types import PlannedTensor, SourceTensor
from pipeline.views import Stored

pytestmark = pytest.mark.native

F32 = NDArray[np.float32]
NATIVE = [kind for kind in quant.types().values() if isinstance(kind, NativeType)]
SHAPE = (2, 110, 3072)  # two matrices, in tiles of 170 rows: one tile has rows of both


def _quantized(kind: NativeType, x: F32, importance: F32 | None = None) -> NDArray[np.uint8]:
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    kind.quantize_rows(x, out, importance)
    return out


def _importance(n_cols: int, seed: int = 0) -> F32:
    values: F32 = np.exp(2 * np.random.default_rng(seed).standard_normal(n_cols)).astype(np.float32)
    return values


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[F32, SourceTensor]:
    """Weights of SHAPE with far outliers, and the same in a file."""
    x = np.random.default_rng(10).standard_t(4, SHAPE).astype(np.float32)
    path = tmp_path_factory.mktemp("native") / "weights"
    path.write_bytes(x.tobytes())
    return x, SourceTensor("w", "F32", SHAPE, path, 0, x.nbytes)


@pytest.mark.parametrize("threads", [4, 1])
@pytest.mark.parametrize("kind", NATIVE, ids=str)
def test_tiles_and_threads_give_the_bytes_of_one_call(
    kind: NativeType, threads: int, weights: tuple[F32, SourceTensor], libggml: Any
) -> None:
    """A tensor in tiles, some of which cross a matrix, with an importance per matrix, is what libggml makes at once."""
    x, source = weights
    importance = np.stack([_importance(SHAPE[-1], seed) for seed in (0, 1)])
    planned = PlannedTensor("w", SHAPE, kind.name, tensor_bytes(kind.name, SHAPE), 0, Stored(source), importance)
    with TensorReader() as reader:
        parts = [part.copy() for _, _, part in derive([planned], reader, threads=threads, engine="numpy")]
    assert quant.NumpyEngine.tile_elements // SHAPE[-1] == 170
    whole = [libggml.quantize(kind.id, *both) for both in zip(x, importance, strict=True)]
    assert np.array_equal(np.concatenate(parts), np.concatenate(whole))


@pytest.mark.parametrize("kind", NATIVE, ids=str)
def test_native_types_are_encoded_by_the_library(kind: NativeType, libggml: Any) -> None:
    """Rows, also unaligned ones, reach the library and come back as its bytes and values."""
    x = np.random.default_rng(9).standard_t(4, (5, 768)).astype(np.float32)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = x.view(np.uint8).reshape(-1)
    importance = _importance(768)
    data = _quantized(kind, raw[1:].view(np.float32).reshape(x.shape), importance)
    assert data.tobytes() == libggml.quantize(kind.id, x, importance).tobytes()
    out = np.empty((5, 768), np.float32)
    kind.dequantize_rows(data, out)
    assert np.array_equal(out, libggml.dequantize(kind.id, data))
    assert np.abs(out - x).mean() < np.abs(x).mean()
    assert _quantized(kind, np.empty((0, 768), np.float32), importance).size == 0


@pytest.mark.parametrize("kind", NATIVE, ids=str)
def test_native_types_without_importance(kind: NativeType, libggml: Any) -> None:
    """Where libggml would stop the process for want of an importance matrix, an error says so."""
    x = np.random.default_rng(9).standard_normal((2, 256)).astype(np.float32)
    assert kind.needs_importance == libggml.requires_importance(kind.id)
    if kind.needs_importance:
        with pytest.raises(UsageError, match="--imatrix"):
            _quantized(kind, x)
    else:
        assert _quantized(kind, x).tobytes() == libggml.quantize(kind.id, x).tobytes()


@pytest.mark.parametrize("kind", NATIVE, ids=str)
def test_native_types_need_the_library(kind: NativeType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a built llama.cpp the error says how to build it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ToolError, match="make llama"):
        _quantized(kind, np.zeros((1, 256), np.float32), np.ones(256, np.float32))
