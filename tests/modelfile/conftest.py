"""The two pieces of Ollama that the tests here compare with, as fixtures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_HERE = Path(__file__).parent


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"modelfile_{name}", _HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ollama_parser() -> ModuleType:
    """Our model of Ollama's Modelfile parser."""
    return _module("ollama_parser")


@pytest.fixture(scope="session")
def go_template() -> ModuleType:
    """Our model of Go's text/template."""
    return _module("go_template")


@pytest.fixture(scope="session")
def chat_references() -> Path:
    """For each chat family a short checkpoint template of its style: the prompt that the Go template must make."""
    return _HERE / "chat"
