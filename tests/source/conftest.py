"""A Hub of one's own, and the smallest checkpoint to put there."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.source import Patience, open_source
from pipeline.types import Source

_spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).parent / "hub_server.py")
assert _spec is not None
assert _spec.loader is not None
_hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = _hub_server  # dataclasses look their module up
_spec.loader.exec_module(_hub_server)


@pytest.fixture(scope="session")
def _server() -> Iterator[Any]:
    with _hub_server.serve() as server:
        yield server


@pytest.fixture
def hub(_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty Hub, to which HF_ENDPOINT points; the client sends nothing elsewhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_ENDPOINT", _server.hub.url)
    _server.hub.reset()
    return _server.hub


@pytest.fixture
def server(hub: Any, _server: Any) -> Any:
    """The server behind the Hub, to be taken down and up."""
    return _server


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
