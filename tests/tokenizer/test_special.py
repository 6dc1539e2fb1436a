"""Special ids and the add_*_token flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.tokenizer import Tokenizer, read_tokenizer

Read = Callable[..., Tokenizer]


@pytest.fixture
def read(checkpoint: Callable[..., Path], document: dict[str, Any]) -> Read:
    """Read a checkpoint with the added tokens <s>, </s>, <sep>; arguments are its files and tokenizer.json's parts."""

    def call(config: dict[str, Any] | None = None, parts: dict[str, Any] | None = None, **files: Any) -> Tokenizer:
        names = ("<s>", "</s>", "<sep>")
        added = [{"id": 5 + i, "content": name, "special": True} for i, name in enumerate(names)]
        tokenizer = {**document, "added_tokens": added, **(parts or {})}
        return read_tokenizer(checkpoint(tokenizer=tokenizer, **files), config or {})

    return call


def _flags(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        kv.key.removeprefix("tokenizer.ggml."): kv.value
        for kv in tokenizer.metadata
        if kv.key.endswith(("_token_id", "bos_token", "eos_token", "sep_token"))
    }


def _template(*single: str) -> dict[str, Any]:
    entries = [
        {"Sequence": {"id": name, "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in single
    ]
    return {"type": "TemplateProcessing", "single": entries, "pair": [], "special_tokens": {}}


def test_flags_are_always_said(read: Read) -> None:
    """A tokenizer that says nothing adds nothing, in so many words: llama.cpp's defaults differ by rule."""
    assert _flags(read()) == {"add_bos_token": False, "add_eos_token": False}


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}])
def test_a_special_token_is_text_or_an_object(read: Read, token: object) -> None:
    """Both spellings of tokenizer_config.json give the id and the text."""
    tokenizer = read(tokenizer_config={"bos_token": token, "eos_token": None})
    assert _flags(tokenizer)["bos_token_id"] == 5
    assert (tokenizer.bos, tokenizer.eos) == ("<s>", None)


def test_the_template_names_what_the_config_does_not(read: Read) -> None:
    """BOS and EOS come out of the post_processor where tokenizer_config.json is silent."""
    found = _flags(read(parts={"post_processor": _template("<s>", "A", "</s>")}))
    assert found == {"bos_token_id": 5, "eos_token_id": 6, "add_bos_token": True, "add_eos_token": True}


def test_a_changed_end_keeps_the_old_one_as_end_of_turn(read: Read) -> None:
    """Where the template ends with another token, that is EOS, and what was called so ends a turn."""
    found = _flags(read(parts={"post_processor": _template("A", "<sep>")}, tokenizer_config={"eos_token": "</s>"}))
    assert (found["eos_token_id"], found["eot_token_id"], found["add_eos_token"]) == (7, 6, True)


def test_two_tokens_before_the_text_are_noted(read: Read) -> None:
    """llama.cpp can add one token: of two it adds none, and that is said."""
    tokenizer = read(parts={"post_processor": _template("<s>", "<sep>", "A")}, tokenizer_config={"bos_token": "<s>"})
    assert _flags(tokenizer)["add_bos_token"] is False
    assert "<s> <sep> ..." in tokenizer.notes[0]


@pytest.mark.parametrize(("name", "adds"), [("LlamaTokenizerFast", False), ("PreTrainedTokenizerFast", True)])
def test_some_classes_build_their_post_processor(read: Read, name: str, adds: bool) -> None:
    """For Llama-like classes the flag of tokenizer_config.json wins over the template, as in transformers."""
    tokenizer = read(
        parts={"post_processor": _template("<s>", "A")},
        tokenizer_config={"bos_token": "<s>", "add_bos_token": False, "tokenizer_class": name},
    )
    assert _flags(tokenizer)["add_bos_token"] is adds
    assert "add_bos_token" in tokenizer.notes[0]


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizerFast", "GPTNeoXTokenizerFast"])
def test_a_flag_counts_beside_a_post_processor_that_adds_nothing(read: Read, name: str) -> None:
    """DeepSeek's files: the class adds BOS because add_bos_token says so, though the post_processor has none."""
    settings = {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": False, "tokenizer_class": name}
    tokenizer = read(parts={"post_processor": {"type": "ByteLevel"}}, tokenizer_config=settings)
    assert _flags(tokenizer)["add_bos_token"] is True
    assert "tokenizer_config.json counts" in tokenizer.notes[0]


def test_no_flag_without_an_id(read: Read) -> None:
    """add_bos_token without a BOS would end llama.cpp's process, so it becomes false, with a note."""
    tokenizer = read(tokenizer_config={"add_bos_token": True})
    assert _flags(tokenizer) == {"add_bos_token": False, "add_eos_token": False}
    assert "no bos token is known" in tokenizer.notes[0]


def test_config_fills_what_is_missing(read: Read) -> None:
    """config.json's ids count where tokenizer_config.json is silent; -1 is none, others out of range are noted."""
    tokenizer = read(
        config={"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": -1, "unk_token_id": 99},
        tokenizer_config={"bos_token": "<s>"},
    )
    assert _flags(tokenizer) == {"bos_token_id": 5, "eos_token_id": 4, "add_bos_token": False, "add_eos_token": False}
    assert [note for note in tokenizer.notes if "unk_token_id 99" in note]


def test_a_name_that_is_no_token_is_noted(read: Read) -> None:
    """A special token that the vocabulary lacks is said, not written."""
    tokenizer = read(tokenizer_config={"pad_token": "<pad>"})
    assert "padding_token_id" not in _flags(tokenizer)
    assert "'<pad>'" in tokenizer.notes[0]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"bos_token": 5}},
        {"tokenizer_config": {"bos_token": {"content": 5}}},
        {"tokenizer_config": {"add_bos_token": "yes"}},
        {"generation_config": {"eos_token_id": "2"}},
        {"generation_config": {"eos_token_id": [2, None]}},
        {"parts": {"post_processor": {"type": "Other"}}},
        {"parts": {"post_processor": {"type": "Sequence", "processors": [1]}}},
        {"parts": {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": "<s>"}]}}},
        {"parts": {"post_processor": {"type": "RobertaProcessing", "cls": [], "sep": ["</s>", 6]}}},
    ],
)
def test_wrong_types_are_format_errors(read: Read, files: dict[str, Any]) -> None:
    """What is not what it claims is found in every file."""
    with pytest.raises(FormatError):
        read(**files)


def test_added_tokens_have_types(read: Read) -> None:
    """Special tokens and what looks like one are control tokens, others are user-defined with real blanks."""
    added = [
        {"id": 5, "content": "<x>", "special": True},
        {"id": 6, "content": "<|y|>", "special": False},
        {"id": 7, "content": "\u2581z", "special": False},
    ]
    tokenizer = read(parts={"added_tokens": added})
    keys = {kv.key: kv.value for kv in tokenizer.metadata}
    assert keys["tokenizer.ggml.token_type"][5:] == (3, 3, 4)
    assert keys["tokenizer.ggml.tokens"][5:] == ("<x>", "<|y|>", " z")
