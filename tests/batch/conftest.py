"""Jobs files, and stores of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store lies in the test's own folder; no Ollama is asked."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "local"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a jobs file."""

    def call(text: str) -> Path:
        path = tmp_path / "jobs.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return call
