"""With options and importance matrices, too, our files are llama-quantize's files, byte for byte."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipeline import flow, quant
from pipeline.errors import UnsupportedError
from pipeline.gguf import GgufFile, read_gguf
from pipeline.progress import Reporter
from pipeline.tuning import Tuning, read_importance

pytestmark = pytest.mark.native

QUIET = Reporter(quiet=True)
# Of those that libggml encodes, two stand for all: their grids take long to make, in each process anew.
NATIVE = {name for name in quant.recipes() if name.startswith(("IQ1", "IQ2", "IQ3"))}
RECIPES = sorted(quant.recipes().keys() - NATIVE - {"Q2_K_S"})
WITH_IMPORTANCE = sorted({*RECIPES, "Q2_K_S", "IQ2_XXS", "IQ3_S"})


@dataclass(frozen=True)
class Source:
    """An unquantized model, and importance matrices for it in both forms."""

    path: Path
    imatrix: Path
    legacy: Path


def _matrices(file: GgufFile) -> dict[str, tuple[int, int]]:
    """Return (experts, columns) of each matrix that is multiplied."""
    shapes = {t.name: t.shape for t in file.tensors if len(t.shape) > 1 and t.name.startswith("blk.")}
    return {name: (shape[0] if len(shape) > 2 else 1, shape[-1]) for name, shape in shapes.items()}


def write_imatrix(path: Path, matrices: dict[str, tuple[int, int]]) -> None:
    """Write an importance matrix as llama-imatrix does: sums and counts, one expert never called."""
    rng = np.random.default_rng(len(matrices))
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration/some text.txt", "another.txt"])
    writer.add_uint32("imatrix.chunk_count", 12)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (n_experts, n_cols) in matrices.items():
        counts = rng.integers(1, 5000, (n_experts, 1)).astype(np.float32)
        counts[n_experts // 2] = 0 if n_experts > 1 else 7
        sums = (rng.chisquare(1, (n_experts, n_cols)) * counts).astype(np.float32)
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_legacy(path: Path, matrices: dict[str, tuple[int, int]]) -> None:
    """Write the older form: number of entries; name, calls, values each; chunks and data set at the end."""
    rng = np.random.default_rng(len(matrices) + 1)
    parts = [struct.pack("<i", len(matrices))]
    for name, (n_experts, n_cols) in matrices.items():
        values = (rng.chisquare(1, n_experts * n_cols) * 7).astype("<f4")
        parts.append(struct.pack(f"<i{len(name)}sii", len(name), name.encode(), 7, len(values)) + values.tobytes())
    parts.append(struct.pack("<ii5s", 3, 5, b"a.txt"))
    path.write_bytes(b"".join(parts))


def _prepare(model: str, folder: Path, demo: Path) -> Source:
    """Convert a model, and make up what matrices its columns met."""
    fixture = Path(__file__).parent.parent / "fixtures" / "arch" / model
    made = Source(folder / "auto.gguf", folder / "imatrix.gguf", folder / "imatrix.dat")
    flow.convert(str(demo if model == "demo" else fixture), made.path, "auto", QUIET)
    matrices = _matrices(read_gguf(made.path))
    write_imatrix(made.imatrix, matrices)
    write_legacy(made.legacy, matrices)
    return made


@pytest.fixture(scope="module", params=["demo", "qwen3_moe"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Source:
    """A dense model and one with experts."""
    return _prepare(request.param, tmp_path_factory.mktemp("tuned"), demo)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Source:
    """A dense model with rows that every type fits."""
    return _prepare("demo", tmp_path_factory.mktemp("dense"), demo)


def llama_quantize(llama: Any, source: Path, target: Path, recipe: str, *options: str) -> str:
    """Return the sha256 of what llama-quantize makes, run in the source's folder."""
    command = [llama.program("llama-quantize"), *options, source, target, recipe]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=source.parent)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def ours(source: Path, target: Path, recipe: str, tuning: Tuning) -> str:
    """Return the sha256 of what we make."""
    flow.quantize(source, target, recipe, QUIET, tuning=tuning)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def _has_no_type(source: Source, recipe: str) -> bool:
    """Check that blocks of 128 in rows of 64 are refused, which have no fall-back; say whether it is so."""
    is_narrow = read_gguf(source.path).tensor("token_embd.weight").shape[-1] < 128
    if recipe == "Q1_0" and is_narrow:
        with pytest.raises(UnsupportedError, match="no other type stands in"):
            flow.quantize(source.path, source.path.parent / "none.gguf", recipe, QUIET)
    return recipe == "Q1_0" and is_narrow


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(dense: Source, recipe: str, llama: Any, tmp_path: Path) -> None:
    """Without importance matrix the whole file is llama-quantize's."""
    theirs = llama_quantize(llama, dense.path, tmp_path / "theirs.gguf", recipe)
    assert ours(dense.path, tmp_path / "ours.gguf", recipe, Tuning()) == theirs


@pytest.mark.parametrize("recipe", WITH_IMPORTANCE)
def test_every_recipe_with_an_importance_matrix(source: Source, recipe: str, llama: Any, tmp_path: Path) -> None:
    """Each expert is weighed by its own columns, and the keys stand where llama-quantize puts them."""
    if _has_no_type(source, recipe):
        return
    theirs = llama_quantize(llama, source.path, tmp_path / "theirs.gguf", recipe, "--imatrix", source.imatrix.name)
    tuning = Tuning(importance=read_importance(source.imatrix))
    assert ours(source.path, tmp_path / "ours.gguf", recipe, tuning) == theirs


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_0"])
def test_the_older_form(source: Source, recipe: str, llama: Any, tmp_path: Path) -> None:
    """A matrix in the form without magic gives the same file."""
    theirs = llama_quantize(llama, source.path, tmp_path / "theirs.gguf", recipe, "--imatrix", source.legacy.name)
    tuning = Tuning(importance=read_importance(source.legacy))
    assert ours(source.path, tmp_path / "ours.gguf", recipe, tuning) == theirs


def test_keys_of_another_matrix_are_replaced(source: Source, llama: Any, tmp_path: Path) -> None:
    """A source that names a matrix already gets the new one's keys, at the end."""
    first = Tuning(quant.Options(), read_importance(source.legacy))
    flow.quantize(source.path, source.path.parent / "f16.gguf", "F16", QUIET, tuning=first)
    f16 = source.path.parent / "f16.gguf"
    theirs = llama_quantize(llama, f16, tmp_path / "theirs.gguf", "Q4_K_S", "--imatrix", source.imatrix.name)
    tuning = Tuning(importance=read_importance(source.imatrix))
    assert ours(f16, tmp_path / "ours.gguf", "Q4_K_S", tuning) == theirs


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--pure"], quant.Options(pure=True)),
        (["--leave-output-tensor"], quant.Options(leave_output=True)),
        (["--tensor-type", "attn_[qk]=iq4_nl", "--tensor-type", "ffn=tq2_0", "--output-tensor-type", "q5_1"],
         quant.Options((("attn_[qk]", "IQ4_NL"), ("ffn", "TQ2_0")), output_type="Q5_1")),
        (["--token-embedding-type", "bf16"], quant.Options(embedding_type="BF16")),
    ],
)  # fmt: skip
def test_options(source: Source, arguments: list[str], options: quant.Options, llama: Any, tmp_path: Path) -> None:
    """Options give llama-quantize's file."""
    theirs = llama_quantize(llama, source.path, tmp_path / "theirs.gguf", "Q4_K_M", *arguments)
    assert ours(source.path, tmp_path / "ours.gguf", "Q4_K_M", Tuning(options)) == theirs
