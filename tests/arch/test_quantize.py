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


@pytest.mark.native
def test_packed_experts_are_quantized_again_on_request(llama: Any, silent_log: Any, tmp_path: Path) -> None:
    """With leave to quantize twice, MXFP4 becomes what llama-quantize makes of it under --allow-requantize."""
    source, ours, theirs = (tmp_path / name for name in ("auto.gguf", "ours.gguf", "theirs.gguf"))
    flow.convert(str(FIXTURES / "gpt_oss"), source, "auto", silent_log)
    flow.quantize(source, ours, "Q4_K_M", silent_log, requantize=True)
    program = [llama.program("llama-quantize"), "--allow-requantize"]
    subprocess.run([*program, source, theirs, "Q4_K_M"], check=True, capture_output=True, timeout=60)
    assert ours.read_bytes() == theirs.read_bytes()
