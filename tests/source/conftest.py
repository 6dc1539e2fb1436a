"""A Hub of one's own, and the smallest checkpoint to put there."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    monkeypatch.setenv("HF_ENDPOINT", _server.url)
    _server.repos.clear()
    _server.requests.clear()
    _server.faults.clear()
    return _server


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
