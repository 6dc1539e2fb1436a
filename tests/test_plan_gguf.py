"""A GGUF as input of `quantize`: headers that no model has are refused by file and key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import flow
from pipeline.blueprint import from_gguf
from pipeline.errors import FormatError, UnsupportedError
from pipeline.gguf import read_parts
from pipeline.gguf.header import TensorEntry, encode_header
from pipeline.plan import make_plan
from pipeline.types import KV, ValueType, array, string, u32

ROWS = np.ones((4, 32), np.float32)


@pytest.fixture
def gguf_of(tmp_path: Path) -> Callable[[Sequence[KV], int], Path]:
    """Write a GGUF with one matrix, these keys and this alignment."""

    def make(keys: Sequence[KV], alignment: int = 32) -> Path:
        path = tmp_path / "m.gguf"
        entry = TensorEntry("token_embd.weight", ROWS.shape, 0, 0)
        path.write_bytes(encode_header([string("general.architecture", "llama"), *keys], [entry], alignment))
        with path.open("ab") as file:
            file.write(ROWS.tobytes().ljust(-(-ROWS.nbytes // alignment) * alignment, b"\0"))
        return path

    return make


HEADS, EXPERTS, BLOCKS = "llama.attention.head_count", "llama.expert_count", "llama.block_count"
BAD: dict[str, tuple[KV, ...]] = {
    HEADS: (u32(BLOCKS, 1), array(HEADS, ValueType.UINT32, [])),
    f"{HEADS} ": (u32(BLOCKS, 1), string(HEADS, "four")),
    f"{HEADS}  ": (u32(BLOCKS, 1), array(HEADS, ValueType.STRING, ["4"])),
    f"{HEADS}_kv": (u32(BLOCKS, 1), u32(HEADS, 4), KV(f"{HEADS}_kv", ValueType.FLOAT32, 2.0)),
    EXPERTS: (u32(BLOCKS, 1), string(EXPERTS, "8")),
    f"{EXPERTS} ": (u32(BLOCKS, 1), u32(EXPERTS, 1 << 31)),
    BLOCKS: (u32(BLOCKS, (1 << 32) - 1),),
    f"{BLOCKS} ": (string(BLOCKS, "1"),),
    f"{BLOCKS}  ": (),
}


@pytest.mark.parametrize("case", BAD)
def test_an_impossible_count_is_named(case: str, gguf_of: Callable[..., Path]) -> None:
    """Empty arrays, texts and huge numbers end in an error with the file and the key."""
    path = gguf_of(BAD[case])
    with pytest.raises(FormatError) as caught:
        from_gguf(read_parts(path))
    assert str(path) in str(caught.value)
    assert case.strip() in str(caught.value)


def test_counts_for_each_layer_are_read(gguf_of: Callable[..., Path]) -> None:
    """Of an array of head counts the first is taken, as llama.cpp's rules do."""
    path = gguf_of((u32(BLOCKS, 2), array(HEADS, ValueType.UINT32, [8, 4]), array(f"{HEADS}_kv", ValueType.INT32, [2])))
    model = from_gguf(read_parts(path)).model
    assert (model.n_layer, model.n_expert, model.n_head, model.n_head_kv) == (2, 0, 8, 2)


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_another_alignment_is_refused(
    alignment: int, gguf_of: Callable[..., Path], silent_log: Any, tmp_path: Path
) -> None:
    """llama-quantize would keep the key over data aligned to 32, which libggml cannot read; nothing is written."""
    path = gguf_of((u32(BLOCKS, 1), u32("general.alignment", alignment)), alignment)
    with pytest.raises(UnsupportedError) as caught:
        flow.quantize(path, tmp_path / "out.gguf", "Q8_0", silent_log)
    assert str(path) in str(caught.value)
    assert "general.alignment" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_the_usual_alignment_said_aloud_is_kept(gguf_of: Callable[..., Path]) -> None:
    """An alignment of 32 in the header stays there, as llama-quantize leaves it."""
    path = gguf_of((u32(BLOCKS, 1), u32("general.alignment", 32)))
    plan = make_plan(from_gguf(read_parts(path)), "Q8_0")
    assert [kv.value for kv in plan.metadata if kv.key == "general.alignment"] == [32]
