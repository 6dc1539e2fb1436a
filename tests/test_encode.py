"""Source tiles are read once for all files; weights that cannot be encoded are refused with their place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import flow
from pipeline.checkpoint import TensorReader
from pipeline.encode import Output, encode
from pipeline.errors import FormatError
from pipeline.plan import make_plan
from pipeline.progress import Reporter
from pipeline.types import SourceTensor

QUIET = Reporter(quiet=True)
NAME, ROW, COLUMN = "model.layers.1.mlp.down_proj.weight", 200, 700  # 256 rows of 768 columns

Spoiled = Callable[[float], Path]


class CountingReader(TensorReader):
    """A reader that counts the bytes it is asked for."""

    n_bytes = 0

    def _fill(self, tensor: SourceTensor, start: int, buffers: list[memoryview]) -> None:
        self.n_bytes += sum(buffer.nbytes for buffer in buffers)
        super()._fill(tensor, start, buffers)


def test_many_files_cost_one_reading(demo: Path, tmp_path: Path) -> None:
    """Three quantizations together read every byte of the weights once, and are what each one gives alone."""
    recipes = ("Q4_K_M", "Q5_K_M", "Q8_0")
    with flow.prepare(str(demo), QUIET) as prepared:
        outputs = [Output(make_plan(prepared.blueprint, name), tmp_path / name) for name in recipes]
        n_bytes = sum(tensor.n_bytes for tensor in prepared.tensors.values())
    with CountingReader() as reader:
        together = encode(outputs, reader, threads=1)
    assert reader.n_bytes == n_bytes
    with TensorReader() as alone:
        assert [encode([output], alone)[0] for output in outputs] == together


@pytest.fixture
def spoiled(demo: Path, tmp_path: Path) -> Spoiled:
    """Copy the demo with one BF16 weight replaced."""

    def copy(value: float) -> Path:
        folder = shutil.copytree(demo, tmp_path / "spoiled")
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        entry = json.loads(data[8:start])[NAME]
        at = start + entry["data_offsets"][0] + 2 * (ROW * entry["shape"][1] + COLUMN)
        data[at : at + 2] = (np.float32(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        path.write_bytes(data)
        return folder

    return copy


@pytest.mark.parametrize("engine", ["numpy", "fast"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_no_number_is_refused(value: float, engine: str, spoiled: Spoiled, tmp_path: Path) -> None:
    """NaN and Inf in the source: file, tensor, row and column are named, even where the type is kept."""
    for dtype in ("auto", "F32"):
        with pytest.raises(FormatError, match="NaN or Inf") as caught:
            flow.convert(str(spoiled(value)), tmp_path / "x.gguf", dtype, QUIET, engine=engine)
        assert caught.value.where == f"model.safetensors, tensor {NAME}"
        assert f"row {ROW}, column {COLUMN} of blk.1.ffn_down.weight" in str(caught.value.found)
        shutil.rmtree(tmp_path / "spoiled")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["numpy", "fast"])
@pytest.mark.parametrize(
    ("recipe", "what", "place"),
    [
        ("F16", "too large for float16", f"column {COLUMN}"),
        ("Q8_0", "too large for Q8_0", "columns 672 to 703"),
        ("Q4_K_M", "too large for Q", "columns 512 to 767"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(
    recipe: str, what: str, place: str, engine: str, spoiled: Spoiled, tmp_path: Path
) -> None:
    """A weight, or a block's scale, beyond float16 is refused as llama-quantize does; BF16 holds it."""
    flow.convert(str(spoiled(3e38)), tmp_path / "whole.gguf", "auto", QUIET)
    with pytest.raises(FormatError, match=what) as caught:
        flow.quantize(tmp_path / "whole.gguf", tmp_path / "x.gguf", recipe, QUIET, engine=engine)
    assert caught.value.where == f"tensor blk.1.ffn_down.weight, row {ROW}, {place}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoiled", "whole.gguf"]
