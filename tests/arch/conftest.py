"""llama.cpp's own arithmetic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
_NOT_COPIED = ("official*", "reference.npz", "*.safetensors*")


@dataclass
class Raw:
    """A stored tensor: *data* is uint8 (*shape, bytes of an element)."""

    dtype: str
    data: np.ndarray

    @property
    def shape(self) -> list[int]:
        """The shape in elements."""
        return list(self.data.shape[:-1])


def read_weights(folder: Path) -> dict[str, Raw]:
    """Read all safetensors files of *folder*."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        for name, entry in json.loads(blob[8:start]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                data = np.frombuffer(blob[start + first : start + last], np.uint8)
                found[name] = Raw(entry["dtype"], data.reshape(*entry["shape"], -1))
    return found


def write_weights(path: Path, tensors: dict[str, Raw]) -> None:
    """Write one safetensors file."""
    header, at = {}, 0
    for name, raw in tensors.items():
        header[name] = {"dtype": raw.dtype, "shape": raw.shape, "data_offsets": [at, at + raw.data.size]}
        at += raw.data.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw.data.tobytes() for raw in tensors.values()))


Change = Callable[[dict[str, Any], dict[str, Raw]], None]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, Change], Path]:
    """Copy a golden checkpoint with *change*(config, tensors) applied; the copy has the same folder name."""

    def edit(name: str, change: Change) -> Path:
        folder = tmp_path / f"edit{len(list(tmp_path.iterdir()))}" / name
        shutil.copytree(FIXTURES / name, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
        tensors = read_weights(FIXTURES / name)
        change(config, tensors)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_weights(folder / "model.safetensors", tensors)
        return folder

    return edit


@pytest.fixture(scope="session")
def reference(oracle: Callable[[str], ModuleType]) -> ModuleType:
    """The module that compares logits."""
    return oracle("libllama")


@pytest.fixture(scope="session")
def libllama(reference: ModuleType, llama: Any) -> Any:
    """llama.cpp over ctypes."""
    return reference.LibLlama(llama.library("llama"))
