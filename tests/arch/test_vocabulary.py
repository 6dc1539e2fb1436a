"""Vocabularies whose embedding has more rows than config.json's vocab_size says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow, gguf
from pipeline.errors import FormatError
from pipeline.runtime import open_runtime

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
N_TOKENS, N_ROWS = 379, 384


@pytest.fixture
def shortened(edited: Any) -> Any:
    """Copy a fixture, whose embedding has 384 rows, with 379 tokens and a vocab_size of so many."""

    def make(name: str, **settings: Any) -> Path:
        folder: Path = edited(name, lambda config, _tensors: config.update(vocab_size=N_TOKENS, **settings))
        document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        model = document["model"]
        kept = {text for text, number in model["vocab"].items() if number < N_TOKENS}
        model["vocab"] = {text: number for text, number in model["vocab"].items() if text in kept}
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= kept]
        document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < N_TOKENS]
        (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        return folder

    return make


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_rows_without_a_token_get_one(name: str, shortened: Any, tmp_path: Path, silent_log: Any) -> None:
    """As llama.cpp's converter does, rows that pad the embedding to the family's multiple get unused tokens."""
    flow.convert(str(shortened(name)), tmp_path / "out.gguf", "F32", silent_log)
    metadata = gguf.read_gguf(tmp_path / "out.gguf").metadata
    with gzip.open(FIXTURES / name / "official_vocab.json.gz", "rt", encoding="utf-8") as file:
        official = json.load(file)["tokenizer.ggml.tokens"]
    expected = [*official[:N_TOKENS], *(f"[PAD{i}]" for i in range(N_TOKENS, N_ROWS))]
    assert list(metadata["tokenizer.ggml.tokens"].value) == expected
    assert set(metadata["tokenizer.ggml.token_type"].value[N_TOKENS:]) == {5}


@pytest.mark.native
def test_a_padded_file_loads(shortened: Any, tmp_path: Path, silent_log: Any, llama: Any) -> None:
    """llama.cpp loads the file: it has a token for each row."""
    assert llama
    flow.convert(str(shortened("mamba2")), tmp_path / "out.gguf", "F32", silent_log)
    with open_runtime(tmp_path / "out.gguf", n_ctx=64) as session:
        assert len(session.complete("a", 2).tokens) == 2


def test_the_multiple_of_config_json_wins(shortened: Any, tmp_path: Path, silent_log: Any) -> None:
    """A checkpoint may name its own multiple; one that does not lead to the embedding's rows is refused."""
    flow.convert(str(shortened("mamba", pad_vocab_size_multiple=128)), tmp_path / "out.gguf", "F32", silent_log)
    assert len(gguf.read_gguf(tmp_path / "out.gguf").metadata["tokenizer.ggml.tokens"].value) == N_ROWS
    with pytest.raises(FormatError, match="another shape than config"):
        flow.convert(str(shortened("mamba", pad_vocab_size_multiple=100)), tmp_path / "no.gguf", "F32", silent_log)


def test_an_embedding_as_config_json_says_is_not_padded(edited: Any, tmp_path: Path, silent_log: Any) -> None:
    """After tokens were added the rows are no multiple of anything, and stay as they are."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["vocab_size"] = N_ROWS + 1
        embedding = tensors["backbone.embeddings.weight"]
        embedding.data = embedding.data[[*range(N_ROWS), 0]]

    flow.convert(str(edited("mamba", change)), tmp_path / "out.gguf", "F32", silent_log)
    assert len(gguf.read_gguf(tmp_path / "out.gguf").metadata["tokenizer.ggml.tokens"].value) == N_ROWS + 1


def test_others_are_refused(shortened: Any, tmp_path: Path, silent_log: Any) -> None:
    """A family whose embeddings are not padded has as many rows as config.json says."""
    with pytest.raises(FormatError, match="another shape than config"):
        flow.convert(str(shortened("gpt2")), tmp_path / "no.gguf", "F32", silent_log)
