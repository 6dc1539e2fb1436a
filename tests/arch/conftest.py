"""llama.cpp's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def reference(oracle: Callable[[str], ModuleType]) -> ModuleType:
    """The module that compares logits."""
    return oracle("libllama")


@pytest.fixture(scope="session")
def libllama(reference: ModuleType, llama: Any) -> Any:
    """llama.cpp over ctypes."""
    return reference.LibLlama(llama.library("llama"))
