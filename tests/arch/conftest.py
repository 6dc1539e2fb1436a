"""A silent log, and llama.cpp's own arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


class SilentLog:
    """A flow's log that shows nothing and remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, _text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)

    def bar(self, _text: str) -> Any:
        """Show nothing."""
        return contextlib.nullcontext(lambda _done, _total: None)


@pytest.fixture(scope="session")
def silent_log() -> SilentLog:
    """A log for calling the flow's functions."""
    return SilentLog()


@pytest.fixture(scope="session")
def reference(oracle: Callable[[str], ModuleType]) -> ModuleType:
    """The module that compares logits."""
    return oracle("libllama")


@pytest.fixture(scope="session")
def libllama(reference: ModuleType, llama: Any) -> Any:
    """llama.cpp over ctypes."""
    return reference.LibLlama(llama.library("llama"))
