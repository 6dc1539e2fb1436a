"""A real model of 134.5 million weights: every recipe, whole files against llama-quantize, and sensible answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import data
from pipeline.runtime import open_runtime

pytestmark = pytest.mark.native

RECIPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "IQ4_XS"
)  # fmt: skip


@pytest.fixture(scope="module")
def unquantized(
    oracle: Callable[[str], ModuleType], repository: Path, cli: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """SmolLM2 in its own precision, as `convert` writes it."""
    checkpoint = oracle("smollm2").make_checkpoint(data.cache_home(), repository / "tests" / "fixtures" / "smollm2")
    path = tmp_path_factory.mktemp("smollm2") / "auto.gguf"
    cli("convert", checkpoint, "-o", path)
    return path


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_equals_llama_quantize(
    unquantized: Path, recipe: str, cli: Any, llama: Any, oracle: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Whole files are equal on real weights, with rows of 576 that force fall-backs."""
    asked = oracle("quantized")
    cli("quantize", unquantized, "-o", tmp_path / "ours.gguf", "--quant", recipe)
    ours = asked.sha256(tmp_path / "ours.gguf")
    (tmp_path / "ours.gguf").unlink()
    assert ours == asked.quantized(llama, unquantized, recipe, tmp_path / "theirs.gguf")


def test_it_answers(unquantized: Path, cli: Any, tmp_path: Path) -> None:
    """The quantized file, asked greedily, gives the right capital."""
    cli("quantize", unquantized, "-o", tmp_path / "small.gguf", "--quant", "Q8_0")
    # A bare GGUF of this checkpoint names no sampling, so the engine's own, which is random, is what `run` would use.
    with open_runtime(tmp_path / "small.gguf", n_ctx=256) as session:
        question = {"role": "user", "content": "What is the capital of France? Answer in one word."}
        answer = session.chat([question], options={"temperature": 0, "max_tokens": 20})
    assert "Paris" in answer
