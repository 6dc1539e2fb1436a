"""Our quantized files are llama-quantize's files, byte for byte, and do not change under its COPY."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow

pytestmark = pytest.mark.native

# The others are in test_tuned_files.
RECIPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")
MODELS = ("demo", "llama3", "llama2", "qwen2")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _llama_quantize(llama: Any, source: Path, target: Path, kind: str) -> str:
    subprocess.run(
        [llama.program("llama-quantize"), source, target, kind], check=True, capture_output=True, timeout=300
    )
    return _sha256(target)


@pytest.fixture(scope="module", params=MODELS)
def unquantized(
    request: pytest.FixtureRequest, demo: Path, silent_log: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One model in its own precision, as `convert` writes it."""
    path = tmp_path_factory.mktemp("whole") / "auto.gguf"
    fixtures = Path(__file__).parent.parent / "fixtures" / "arch"
    flow.convert(str(demo if request.param == "demo" else fixtures / request.param), path, "auto", silent_log)
    return path


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantize_writes_the_bytes_of_llama_quantize(
    unquantized: Path, recipe: str, silent_log: Any, llama: Any, tmp_path: Path
) -> None:
    """Header, order, types and every block are equal, fall-backs for odd widths included."""
    flow.quantize(unquantized, tmp_path / "ours.gguf", recipe, silent_log)
    assert _llama_quantize(llama, unquantized, tmp_path / "theirs.gguf", recipe) == _sha256(tmp_path / "ours.gguf")


def test_convert_is_a_fixed_point_of_copy(unquantized: Path, llama: Any, tmp_path: Path) -> None:
    """llama-quantize COPY gives our converted file back as it is."""
    assert _llama_quantize(llama, unquantized, tmp_path / "copy.gguf", "COPY") == _sha256(unquantized)


def test_publish_equals_the_way_over_convert(published: Any, cli: Any, llama: Any, tmp_path: Path) -> None:
    """`publish` quantizes from the checkpoint's own precision: the same bytes as convert, then llama-quantize."""
    cli("convert", "demo", "-o", tmp_path / "auto.gguf")
    for file in published.report["files"]:
        theirs = _llama_quantize(llama, tmp_path / "auto.gguf", tmp_path / "theirs.gguf", file["recipe"])
        assert f"sha256:{theirs}" == file["digest"]


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("engine", ["numpy", "fast"])
def test_neither_threads_nor_engine_change_bytes(
    threads: str, engine: str, published: Any, cli: Any, tmp_path: Path
) -> None:
    """One worker, two or five, with NumPy or with compiled kernels: the same file."""
    options = ("--threads", threads, "--engine", engine, "--proof", "none", "--json")
    done = cli("publish", "demo", *options, GGUF_PIPELINE_STORE=str(tmp_path / "registry"))
    assert published.report["files"][0]["digest"] in done.stdout
