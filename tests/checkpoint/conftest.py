"""Ways to write safetensors files, right and wrong, byte by byte; the writer of pytorch_model.bin files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of the given header (an object or raw bytes) and data, and return its path."""

    def write_file(header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    return write_file


@pytest.fixture(params=["demo", "llama2", "llama3", "qwen2"])
def real(request: pytest.FixtureRequest, repository: Path, demo: Path) -> Path:
    """A real checkpoint: the demo, or a fixture (llama2 has three shards)."""
    return demo if request.param == "demo" else repository / "tests" / "fixtures" / "arch" / request.param


@pytest.fixture
def torch_save(oracle: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A writer of .bin files."""
    return oracle("torch_save").FakeTorch(monkeypatch)


@pytest.fixture
def parameter(oracle: Callable[[str], Any]) -> Any:
    """The stand-in for torch.nn.Parameter."""
    return oracle("torch_save").Parameter
