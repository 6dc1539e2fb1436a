"""A tokenizer of every family: llama.cpp, given our keys, gives the recorded ids of the reference libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokenizer import read_tokenizer

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"
FAMILIES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())

Ids = Callable[..., list[int]]

# Where llama.cpp with our keys gives other ids than a reference: (fixture, reference) -> why.
_LIMITS = {
    ("roberta", "raw"): "strip: llama.cpp keeps the line end that <mask> swallows",
    ("roberta", "hf_special"): "strip: likewise",
    (
        "llama2",
        "hf_special",
    ): "AutoTokenizer 5 cuts two leading blanks wrongly; sentencepiece agrees with us",
    ("dbrx", "hf_special"): "AutoTokenizer 5 ignores the file's pre_tokenizer; tokenizers agrees with us",
    ("t5_v10", "llama_cpp"): "the official file lacks <extra_id_0>, ours has it",
    ("t5_v10", "llama_cpp_special"): "likewise",
    ("xlm_roberta", "llama_cpp"): "the official file lacks <mask>, ours has it",
    ("xlm_roberta", "llama_cpp_special"): "likewise",
}
# What a recorded list is: with BOS and EOS or without.  "raw" is tokenizers on tokenizer.json, "hf" transformers,
# "llama_cpp" llama.cpp on the official converter's file.
_ADDS_SPECIAL = {"raw": False, "hf_special": True, "llama_cpp": False, "llama_cpp_special": True}


@pytest.mark.native
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_the_references(llama_ids: Ids, name: str) -> None:
    """All references agree on all texts, but for the table, of which every entry still shows a difference."""
    expected = json.loads((FOLDER / name / "expected.json").read_text("utf-8"))
    metadata = read_tokenizer(FOLDER / name, expected["config"]).metadata
    differing = set()
    for entry in expected["strings"]:
        for reference, adds_special in _ADDS_SPECIAL.items():
            if llama_ids(metadata, entry["text"], True, adds_special) != entry[reference]:
                differing.add((name, reference))
    assert differing == {key for key in _LIMITS if key[0] == name}


@pytest.mark.native
@pytest.mark.parametrize("name", [n for n in FAMILIES if any((FOLDER / n).glob("*.model"))])
def test_ids_equal_sentencepiece(llama_ids: Ids, name: str) -> None:
    """Without parsing of special tokens the ids are those of the sentencepiece library on the model file."""
    expected = json.loads((FOLDER / name / "expected.json").read_text("utf-8"))
    metadata = read_tokenizer(FOLDER / name, expected["config"]).metadata
    shift = _shift if name == "xlm_roberta" else lambda ids: ids
    for entry in expected["strings"]:
        assert llama_ids(metadata, entry["text"], False) == shift(entry["sentencepiece"]), entry["text"]


def _shift(ids: list[int]) -> list[int]:
    return [{0: 3, 1: 0, 2: 2}.get(token_id, token_id + 1) for token_id in ids]


@pytest.mark.native
@pytest.mark.parametrize("name", FAMILIES)
def test_what_llama_cpp_writes_back_is_the_text(llama_ids: Ids, llama_text: Callable[..., bytes], name: str) -> None:
    """A text of plain words comes back from its ids, but for case and blanks that the tokenizer drops by nature."""
    config: dict[str, Any] = json.loads((FOLDER / name / "expected.json").read_text("utf-8"))["config"]
    metadata = read_tokenizer(FOLDER / name, config).metadata
    text = "This is a simple test."
    back = llama_text(metadata, llama_ids(metadata, text, True)).decode("utf-8")
    assert back.strip().lower().replace(" ", "") == text.lower().replace(" ", "")
