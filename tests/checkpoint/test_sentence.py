"""What sentence-transformers says beside an embedding model: the longest text, and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint._sentence import SentenceFacts, read_sentence_facts
from pipeline.errors import FormatError

KINDS = "sentence_transformers.models."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An embedding model whose vectors are brought to length 1."""
    modules = [{"type": f"{KINDS}{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Normalize")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


def test_nothing_said_is_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the files there is nothing to know; without modules.json they are not looked at."""
    assert read_sentence_facts(folder) == SentenceFacts()
    other = tmp_path_factory.mktemp("chat")
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert read_sentence_facts(other) == SentenceFacts()


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_the_longest_text(folder: Path, name: str) -> None:
    """The length is found whatever the architecture in the file's name; null says nothing."""
    (folder / name).write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert read_sentence_facts(folder).max_tokens == 256
    (folder / name).write_text('{"max_seq_length": null}')
    assert read_sentence_facts(folder).max_tokens is None


def test_prompts_are_noted_in_short(folder: Path) -> None:
    """Prompts are shown, a few of them, for Ollama puts none before a text."""
    prompts = {"query": "query: ", "none": "", **{f"task {n}": f"t{n}: " for n in range(9)}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    (note,) = read_sentence_facts(folder).notes
    assert "query: 'query: ', task 0: 't0: '" in note
    assert note.endswith(" ...)")
    assert "task 3" not in note


@pytest.mark.parametrize("length", [0, -1, 1.5, "256", True, 1 << 40])
def test_an_impossible_length_is_refused(folder: Path, length: Any) -> None:
    """A length that is no number of tokens is an error that names the file."""
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(FormatError, match=r"sentence_bert_config\.json"):
        read_sentence_facts(folder)


@pytest.mark.parametrize("prompts", [["query: "], {"query": 1}, "query: "])
def test_prompts_of_another_form_are_refused(folder: Path, prompts: Any) -> None:
    """Prompts are a table of texts."""
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    with pytest.raises(FormatError, match="table of texts"):
        read_sentence_facts(folder)
