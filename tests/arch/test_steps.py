"""Steps against NumPy: each view reads what the same operation makes of the whole array."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.arch import ModelConfig, _steps
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.errors import FormatError
from pipeline.types import View
from pipeline.views import Stored, count_rows

CONFIG = ModelConfig({"num_attention_heads": 4, "hidden_size": 8})


@dataclass(frozen=True)
class Steps:
    """Gives arrays as views, and reads views as arrays."""

    folder: Path

    def view(self, values: np.ndarray) -> Stored:
        """Write float32 *values* into a checkpoint and open it."""
        header = {"x": {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}}
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + np.ascontiguousarray(values).tobytes()
        (self.folder / "model.safetensors").write_bytes(data)
        (self.folder / "config.json").write_text('{"architectures": ["X"]}')
        return Stored(open_checkpoint(self.folder).tensors["x"])

    def read(self, view: View) -> np.ndarray:
        """Read all of *view*, float32."""
        n_rows = count_rows(view.shape)
        out = np.empty((n_rows, view.shape[-1] * 4), np.uint8)
        with TensorReader() as reader:
            view.read(reader, np.arange(n_rows), slice(None), out)
        return out.view(np.float32).reshape(view.shape)


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    """A folder for one array."""
    return Steps(tmp_path)


def _numbers(*shape: int) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape) - 7


CASES: dict[str, tuple[_steps.Step, np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "transpose": (_steps.transpose, _numbers(4, 6), lambda x: x.T),
    "per head": (_steps.per_head, _numbers(12, 5), lambda x: x.reshape(4, 3, 5)),
    "skip rows": (_steps.skip_rows(lambda _: 2), _numbers(5, 3), lambda x: x[2:]),
    "squeeze": (_steps.squeeze, _numbers(6, 1, 4), lambda x: x[:, 0]),
    "fold": (_steps.fold(lambda _: (2, 5)), _numbers(10), lambda x: x.reshape(2, 5)),
    "second piece": (
        _steps.piece(1, lambda _: (2, 1, 3)),
        _numbers(12, 2),
        lambda x: x.reshape(2, 6, 2)[:, 2:3].reshape(2, 2),
    ),
    "last piece of a vector": (
        _steps.piece(2, lambda _: (2, 1, 3)),
        _numbers(12),
        lambda x: x.reshape(2, 6)[:, 3:].reshape(6),
    ),
    "piece of each matrix": (_steps.piece(1, lambda _: (1, 1)), _numbers(3, 8, 2), lambda x: x[:, 1::2]),
    "ungroup": (
        _steps.ungroup(lambda _: (2, 1, 1)),
        _numbers(12, 3),
        lambda x: np.concatenate([x.reshape(3, 4, 3)[:, a:b].reshape(-1, 3) for a, b in ((0, 2), (2, 3), (3, 4))]),
    ),
    "ungroup a vector": (
        _steps.ungroup(lambda _: (1, 1, 1)),
        _numbers(12),
        lambda x: x.reshape(4, 3).T.reshape(-1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_numpy_does(case: str, steps: Steps) -> None:
    """Shape and values are those of the operation on the whole array."""
    step, values, expected = CASES[case]
    found = steps.read(step(CONFIG, steps.view(values)))
    assert np.array_equal(expected(values), found)


def test_minus_exp_is_rounded_correctly(steps: Steps) -> None:
    """The exponential is the float32 nearest to that of the C library's float64."""
    values = np.linspace(-20, 5, 3000, dtype=np.float32).reshape(300, 10)
    found = steps.read(_steps.minus_exp(CONFIG, steps.view(values)))
    expected = np.array([-math.exp(float(x)) for x in values.ravel()]).astype(np.float32)
    assert np.array_equal(expected, found.ravel())


@pytest.mark.parametrize("sizes", [(2, 3), (3, 0, 4), (7, -3)])
def test_groups_must_fit(sizes: tuple[int, ...], steps: Steps) -> None:
    """Rows that do not split into groups, and impossible sizes from config.json, are refused."""
    with pytest.raises(FormatError, match="do not split"):
        _steps.piece(0, lambda _: sizes)(CONFIG, steps.view(_numbers(12, 2)))
