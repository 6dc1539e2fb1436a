"""Every architecture's files, quantized by us, are llama-quantize's files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
GOLDEN = sorted(path.name for path in FIXTURES.iterdir())
# llama-quantize refuses to quantize a tensor twice, but for those it is told to leave in their type.
KEPT = {"gpt_oss": ("--tensor-type", "_exps=mxfp4")}


@pytest.mark.native
@pytest.mark.parametrize("name", GOLDEN)
def test_quantized_files_equal_those_of_llama_quantize(name: str, llama: Any, silent_log: Any, tmp_path: Path) -> None:
    """Header, order, types and bytes are equal for a recipe with mixed types and two with one."""
    source = tmp_path / "auto.gguf"
    flow.convert(str(FIXTURES / name), source, "auto", silent_log)
    for recipe in ("Q4_K_M", "Q8_0", "Q4_0"):
        ours, theirs = tmp_path / f"ours-{recipe}.gguf", tmp_path / f"theirs-{recipe}.gguf"
        flow.quantize(source, ours, recipe, silent_log)
        program, kept = llama.program("llama-quantize"), KEPT.get(name, ())
        subprocess.run([program, *kept, source, theirs, recipe], check=True, capture_output=True, timeout=60)
        assert ours.read_bytes() == theirs.read_bytes(), recipe
