"""Our keys beside the official converter's, a tokenizer of each family; every deliberate difference has its reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokenizer import Tokenizer, read_tokenizer
from pipeline.tokenizer.pretokenizers import ROWS

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"
FAMILIES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())

_ENCODER = "how many kinds of segments a model has is a fact of its weights: the architecture writes it"
_WORDPIECE_PRE = "llama.cpp reads no rule for WordPiece; the official name goes by a hash of one vocabulary"
_SENTINELS = "the official file has unused tokens in the place of those that tokenizer.json adds"
_VISIBLE = "the official converter takes for special what tokenizer_config.json names; we, what tokenizer.json marks"
_CHARSMAP = "the fixture holds the digest of the official value; its bytes are compared in test_unigram.py"

# (fixture, key without "tokenizer.ggml.") -> why ours differs.  The name of the rule ("pre") may also be any that has
# the same rule in llama.cpp: the official converter chooses it by a hash of what one model's tokenizer gives, ours is
# the first of its row.  Apart from the rule a name decides only how /detokenize cleans blanks, and defaults that we
# always state (BOS) or recognise (ignore_merges).
DELIBERATE: dict[tuple[str, str], str] = {
    ("bert", "pre"): _WORDPIECE_PRE,
    ("distilbert", "pre"): _WORDPIECE_PRE,
    ("nomic_bert", "pre"): _WORDPIECE_PRE,
    ("bert", "token_type_count"): _ENCODER,
    ("distilbert", "token_type_count"): _ENCODER,
    ("nomic_bert", "token_type_count"): _ENCODER,
    ("roberta", "token_type_count"): _ENCODER,
    ("xlm_roberta", "token_type_count"): _ENCODER,
    ("gemma", "eot_token_id"): "the official converter writes 107 for every Gemma 1; ours looks <end_of_turn> up",
    ("gemma4", "token_type"): _VISIBLE,
    (
        "nemotron",
        "padding_token_id",
    ): "the official converter writes 0 for every Nemotron; no file says so",
    (
        "nemotron",
        "unknown_token_id",
    ): "the official converter writes 1 for every Nemotron; here <unk> is 0",
    ("t5_v10", "add_bos_token"): "both flags are always said: llama.cpp's defaults differ by model and rule",
    ("t5_v10", "precompiled_charsmap"): _CHARSMAP,
    ("xlm_roberta", "precompiled_charsmap"): _CHARSMAP,
    ("t5_v10", "tokens"): _SENTINELS,
    ("t5_v10", "token_type"): _SENTINELS,
    ("t5_v10", "scores"): _SENTINELS,
    ("xlm_roberta", "tokens"): _SENTINELS,
    ("xlm_roberta", "token_type"): _SENTINELS,
    ("xlm_roberta", "scores"): _SENTINELS,
}

# Fixtures whose keys stand in another order, which nothing reads.
_ORDER = {
    "gemma": "the official converter appends the end of turn after the rest",
    "glm": "the official converter sets the family's tokens before those of the files",
    "mistral": "the official converter writes add_space_prefix first where tokenizer_config.json has it",
    "modernbert": "the official converter writes the flags first",
    "phi2": "the official converter writes add_bos_token first",
}

_ITEMS = {"tokens": "STRING", "scores": "FLOAT32", "token_type": "INT32", "merges": "STRING"}


def _expected(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / name / "expected.json").read_text("utf-8"))
    return document


def _official(name: str) -> dict[str, tuple[list[str], Any]]:
    keys = {key: (entry["type"], entry["value"]) for key, entry in _expected(name)["official"].items()}
    with gzip.open(FOLDER / name / "official_vocab.json.gz", "rt", encoding="utf-8") as file:
        for key, values in json.load(file).items():
            keys[key] = (["ARRAY", _ITEMS[key.rsplit(".", 1)[1]]], values)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}


def _read(name: str) -> Tokenizer:
    return read_tokenizer(FOLDER / name, _expected(name)["config"])


def _ours(tokenizer: Tokenizer) -> dict[str, tuple[list[str], Any]]:
    found = {}
    for kv in tokenizer.metadata:
        types = [kv.type.name] if kv.item is None else [kv.type.name, kv.item.name]
        value = list(kv.value) if isinstance(kv.value, tuple) else kv.value
        found[kv.key.removeprefix("tokenizer.ggml.")] = (types, value)
    return found


def _same_rule(ours: str, official: str) -> bool:
    return any(ours == row.pre and official in row.same for row in ROWS)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_equal_the_official_converters(name: str) -> None:
    """Every key has the official type and value, but for the table, of which every entry still differs."""
    official, ours = _official(name), _ours(_read(name))
    if "pre" in ours and _same_rule(ours["pre"][1], official["pre"][1]):
        ours["pre"] = official["pre"]
    differing = {key for key in official.keys() | ours.keys() if official.get(key) != ours.get(key)}
    assert differing == {key for fixture, key in DELIBERATE if fixture == name}


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_stand_in_the_official_order(name: str) -> None:
    """Keys that both files have come in the same order, but for the table."""
    official, ours = list(_official(name)), list(_ours(_read(name)))
    arrays = _ITEMS.keys()
    same = [key for key in official if key in ours and key not in arrays] == [
        key for key in ours if key in official and key not in arrays
    ]
    assert same == (name not in _ORDER)


@pytest.mark.parametrize("name", ["t5_v10", "xlm_roberta"])
def test_only_added_tokens_differ_in_unigram_vocabularies(name: str) -> None:
    """Pieces, scores and types are the official ones wherever the official file does not leave a token out."""
    official, ours = _official(name), _ours(_read(name))
    kept = [i for i, kind in enumerate(official["token_type"][1]) if kind != 5]
    assert len(kept) > 400
    for key in ("tokens", "scores", "token_type"):
        assert [ours[key][1][i] for i in kept] == [official[key][1][i] for i in kept]
