"""A checkpoint as pytorch_model.bin gives the file that its safetensors give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline import flow
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.progress import Reporter

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def state(demo: Path) -> dict[str, np.ndarray]:
    """The demo's weights as a state dict; bfloat16 stands in uint16."""
    tensors = {}
    with TensorReader() as reader:
        for name, tensor in open_checkpoint(demo).tensors.items():
            raw = np.empty(tensor.n_bytes, np.uint8)
            reader.read_bytes(tensor, 0, raw)
            tensors[name] = (
                raw.view({"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[tensor.dtype]).reshape(tensor.shape).copy()
            )
    return tensors


def _folder(path: Path, demo: Path) -> Path:
    path.mkdir(parents=True)
    for name in SMALL:
        if (demo / name).exists():
            shutil.copy(demo / name, path)
    return path


def test_same_bytes(
    demo: Path, state: dict[str, np.ndarray], tmp_path: Path, oracle: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One file, and two shards with a matrix saved transposed, convert to the bytes of the safetensors."""
    expected = flow.convert(str(demo), tmp_path / "a.gguf", "auto", Reporter(quiet=True)).files[0][1]
    torch = oracle("torch_save").FakeTorch(monkeypatch)

    one = _folder(tmp_path / "one" / demo.name, demo)
    torch.save(one / "pytorch_model.bin", state)
    assert flow.convert(str(one), tmp_path / "b.gguf", "auto", Reporter(quiet=True)).files[0][1] == expected

    two = _folder(tmp_path / "two" / demo.name, demo)
    name = next(name for name in state if name.endswith("q_proj.weight"))
    turned = state | {name: np.ascontiguousarray(state[name].T).T}
    weight_map = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(turned)}
    for shard in set(weight_map.values()):
        torch.save(two / shard, {name: array for name, array in turned.items() if weight_map[name] == shard})
    (two / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert flow.convert(str(two), tmp_path / "c.gguf", "auto", Reporter(quiet=True)).files[0][1] == expected
