"""A Hub of one's own, and the smallest checkpoint to put there."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.source import Patience, open_source
from pipeline.types import Source


class Pauses(list[float]):
    """Records the seconds between tries instead of waiting them; *at_pause* happens at each."""

    def at_pause(self) -> None:
        """Do nothing."""

    def __call__(self, _stop: threading.Event, seconds: float) -> None:
        """Be told to wait."""
        self.append(seconds)
        self.at_pause()


@pytest.fixture
def pauses() -> Pauses:
    """The waits between tries, which take no time."""
    return Pauses()


@pytest.fixture
def patience(pauses: Pauses) -> Patience:
    """The usual patience on a clock that does not run."""
    return Patience(pause=pauses)


def safetensors(tensors: dict[str, int]) -> bytes:
    """Make a safetensors file of BF16 vectors: their lengths by name; all values differ from file to file."""
    header: dict[str, Any] = {}
    at = 0
    for name, n in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [n], "data_offsets": [at, at + 2 * n]}
        at += 2 * n
    text = json.dumps(header).encode()
    seed = len(text) + sum(text)
    data = bytes((i * 7 + seed) % 251 for i in range(1009)) * (at // 1009 + 1)
    return struct.pack("<Q", len(text)) + text + data[:at]


@pytest.fixture
def weights() -> Callable[[dict[str, int]], bytes]:
    """Make a safetensors file: `weights({"name": length})`."""
    return safetensors


@pytest.fixture
def files() -> dict[str, bytes]:
    """A complete repository: needed files, a weight, and what nobody needs."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b'{"chat_template": ""}',
        "README.md": b"# model",
        "LICENSE": b"Apache",
        "model.safetensors": struct.pack("<Q", len(header)) + header + b"\x80\x3f\x00\x40",
        "pytorch_model.bin": b"pickle",
        "training_args.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "original/params.json": b"{}",
        ".gitattributes": b"",
    }


SHARD = 3_000_000  # bytes of data in each shard


@pytest.fixture
def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same repository with its weights in three files of 3 MB, and their index."""
    del files["model.safetensors"]
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    weight_map = {f"w{i}.{k}": name for i, name in enumerate(names) for k in range(3)}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for i, name in enumerate(names):
        files[name] = safetensors({f"w{i}.{k}": SHARD // 6 for k in range(3)})
    return files


@pytest.fixture
def fetch(patience: Patience) -> Any:
    """Bring a whole model here and return its Source: `fetch("org/m", revision, **options)`."""

    def fetch(model: str, revision: str | None = None, **options: Any) -> Source:
        with open_source(model, revision=revision, patience=patience, **options) as opened:
            return opened.source

    return fetch
