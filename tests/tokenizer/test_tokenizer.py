"""The stage as a whole: from a checkpoint folder to the tokenizer.* keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer import Tokenizer, read_tokenizer


def _read(folder: Path) -> Tokenizer:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return read_tokenizer(folder, config.get("text_config", config))


def _keys(tokenizer: Tokenizer) -> dict[str, tuple[list[str], Any]]:
    found = {}
    for kv in tokenizer.metadata:
        types = [kv.type.name] if kv.item is None else [kv.type.name, kv.item.name]
        found[kv.key] = (types, list(kv.value) if isinstance(kv.value, tuple) else kv.value)
    return found


def _value(tokenizer: Tokenizer, name: str) -> Any:
    return next((kv.value for kv in tokenizer.metadata if kv.key == f"tokenizer.{name}"), None)


def test_the_demo_is_read(demo: Path) -> None:
    """The built-in demo is a Qwen2 tokenizer whose generation ends with either of two tokens."""
    tokenizer = _read(demo)
    assert (tokenizer.pre, tokenizer.kind, tokenizer.n_tokens) == ("qwen2", "byte-level BPE", 1024)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids) == (None, "<|im_end|>", (1023, 1021))
    assert tokenizer.chat_template == (demo / "chat_template.jinja").read_text("utf-8")
    assert any("NFC" in note for note in tokenizer.notes)


def test_ids_without_a_token_are_filled(checkpoint: Callable[..., Path], document: dict[str, Any]) -> None:
    """Holes and the rows up to vocab_size become unused tokens, whose names avoid those that exist."""
    document["model"]["vocab"] = {"a": 0, "b": 1, "ab": 3, "[PAD2]": 5}
    document["model"]["merges"] = ["a b"]
    document["added_tokens"] = []
    tokenizer = read_tokenizer(checkpoint(tokenizer=document), {"vocab_size": 8})
    assert _value(tokenizer, "ggml.tokens") == ("a", "b", "[PAD2]_", "ab", "[PAD4]", "[PAD2]", "[PAD6]", "[PAD7]")
    assert _value(tokenizer, "ggml.token_type") == (1, 1, 5, 1, 5, 1, 5, 5)


def test_more_tokens_than_rows_is_an_error(checkpoint: Callable[..., Path], document: dict[str, Any]) -> None:
    """A vocabulary that does not fit the embedding is refused, with both numbers."""
    with pytest.raises(FormatError, match="more tokens") as error:
        read_tokenizer(checkpoint(tokenizer=document), {"vocab_size": 4})
    assert "vocab_size 4" in str(error.value)
    assert "found:    5" in str(error.value)


@pytest.mark.parametrize("size", [0, -1, 1 << 40, "384", True])
def test_a_bad_vocab_size_is_an_error(checkpoint: Callable[..., Path], document: dict[str, Any], size: object) -> None:
    """config.json's vocab_size has to be a size."""
    with pytest.raises(FormatError, match="vocab_size"):
        read_tokenizer(checkpoint(tokenizer=document), {"vocab_size": size})


def test_no_tokenizer_is_an_error(tmp_path: Path) -> None:
    """A folder without any known tokenizer file says which ones would do."""
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json, tokenizer\.model"):
        read_tokenizer(tmp_path, {})


@pytest.mark.parametrize("kind", ["WordLevel", "Other", None, 5, ["BPE"]])
def test_other_models_are_refused(checkpoint: Callable[..., Path], document: dict[str, Any], kind: object) -> None:
    """What llama.cpp has no model for is refused by name."""
    document["model"]["type"] = kind
    with pytest.raises(UnsupportedError, match="model is not supported"):
        read_tokenizer(checkpoint(tokenizer=document), {})


def test_all_ends_of_generation_are_collected(checkpoint: Callable[..., Path], document: dict[str, Any]) -> None:
    """The tokenizer's own end comes first, then generation_config's, then config.json's, each once and in range."""
    folder = checkpoint(
        tokenizer=document, tokenizer_config={"eos_token": "<end>"}, generation_config={"eos_token_id": [4, 5, 99]}
    )
    assert read_tokenizer(folder, {"eos_token_id": 3}).eos_ids == (5, 4, 3)


def test_sentencepiece_files_must_agree(fixtures: Path, tmp_path: Path) -> None:
    """A tokenizer.json of another vocabulary beside tokenizer.model is an error that shows the piece."""
    shutil.copytree(fixtures / "arch" / "llama2", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    document = json.loads((tmp_path / "m" / "tokenizer.json").read_text("utf-8"))
    vocab = document["model"]["vocab"]
    first, second = list(vocab)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(FormatError, match="disagree"):
        _read(tmp_path / "m")


def test_the_old_two_file_form_equals_the_new_one(fixtures: Path, tmp_path: Path) -> None:
    """vocab.json with merges.txt gives the keys that tokenizer.json gives."""
    source = fixtures / "arch" / "qwen2"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        shutil.copy(source / name, tmp_path / name)
    assert _keys(_read(tmp_path)) == _keys(_read(source))


def test_the_old_form_of_an_unknown_class_is_refused(fixtures: Path, tmp_path: Path) -> None:
    """vocab.json and merges.txt alone do not say how text is cut, so the class must be a known one."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(fixtures / "arch" / "qwen2" / name, tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OtherTokenizer"}', "utf-8")
    with pytest.raises(UnsupportedError, match="OtherTokenizer"):
        read_tokenizer(tmp_path, {})
