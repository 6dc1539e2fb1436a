"""`doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor import Finding, examine
from pipeline.serve import BackgroundServer
from pipeline.store import Store


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stores in the test's own folder, and a port where nobody listens."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("GGUF_PIPELINE_ADDR", f"127.0.0.1:{server.getsockname()[1]}")


def _finding(name: str) -> Finding:
    return next(one for one in examine() if one.name == name)


def test_every_fault_has_a_fix() -> None:
    """Whatever is not as it should be comes with what to do."""
    found = examine()
    assert len({one.name for one in found}) == len(found)
    assert all(one.ok or one.fix for one in found)


def test_the_registry_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody serves: the command that does; a served, empty one: the command that publishes; a bad address: said."""
    assert (_finding("registry").ok, _finding("registry").fix) == (False, "gguf-pipeline serve")
    with BackgroundServer(Store(tmp_path / "registry")) as server:
        monkeypatch.setenv("GGUF_PIPELINE_ADDR", server.address)
        assert (_finding("registry").ok, _finding("registry").fix) == (True, "gguf-pipeline publish demo")
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", "nonsense")
    assert not _finding("registry").ok


def test_a_store_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder is found before a publication fails on it."""
    monkeypatch.setattr("pipeline.doctor.os.access", lambda *_: False)  # root may write everywhere
    found = _finding("our registry")
    assert (found.ok, "GGUF_PIPELINE_STORE" in str(found.fix)) == (False, True)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a common model needs is a fault, with the setting that moves the store."""

    class Usage:
        free = 1_000_000

    monkeypatch.setattr("pipeline.doctor.shutil.disk_usage", lambda _path: Usage())
    for name, setting in (("our registry", "GGUF_PIPELINE_STORE"), ("Hub's cache", "HF_HOME")):
        found: Any = _finding(name)
        assert (found.ok, setting in found.fix) == (False, True)
