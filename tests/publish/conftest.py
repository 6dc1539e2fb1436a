"""A small release, and every target opened on an empty folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.publish import Release, ReleaseEntry
from pipeline.types import Blob

# How a test opens each kind of target, by the kind's name: a target without a line here fails its contract.
TEXTS = {"local": "local", "ollama": "ollama"}


@pytest.fixture
def texts() -> dict[str, str]:
    """What to write after --to, for each kind of target."""
    return TEXTS


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store lies in the test's own folder, and no Ollama is asked."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "local"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")  # nobody listens on port 1


@pytest.fixture
def entry() -> Callable[..., ReleaseEntry]:
    """Write a stand-in for a GGUF to a path, and make its entry."""

    def make(path: Path, tags: tuple[str, ...] = ("Q4_K_M", "latest"), data: bytes = b"GGUF") -> ReleaseEntry:
        path.write_bytes(data)
        return ReleaseEntry(
            tags=tags,
            gguf=path,
            gguf_blob=Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)),
            architecture="qwen2",
            parameter_count=2_622_208,
            file_type="Q4_K_M",
            system="Be <brief> & kind.",
            params={"temperature": 0.7, "stop": ["<|im_end|>"], "num_ctx": 4096},
            messages=[("user", "hé"), ("assistant", "<b>")],
            licenses=["MIT", "Apache-2.0"],
        )

    return make


@pytest.fixture
def release() -> Callable[..., Release]:
    """Make the release library/demo of some entries."""

    def make(*entries: ReleaseEntry) -> Release:
        return Release("library", "demo", entries)

    return make
