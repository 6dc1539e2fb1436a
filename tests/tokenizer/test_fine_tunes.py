"""What fine-tuning does to a tokenizer: added tokens, padding tokens, a vocabulary that was resized."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Reference

from pipeline.errors import FormatError
from pipeline.tokenizer import Tokenizer, read_tokenizer

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"
Ids = Callable[..., list[int]]

# One of each kind; of those with a model file its tokenizer.json alone, as fine-tunes often have it.
KINDS = ("llama3", "qwen2", "gpt2", "llama2", "gemma", "mistral", "t5_v10", "xlm_roberta", "bert")
TEXTS = (
    "<|user|> Hello <tool> world <|end|>",
    "<tool><tool>  <tool>\n",
    "<|user|>Hi there<|end|>\n<|user|>",
    "no token at all: <too l> <|use r|>",
)


def _keys(tokenizer: Tokenizer) -> dict[str, Any]:
    return {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., tuple[Path, Reference]]:
    """Edit a fixture's tokenizer with the real library: add special and plain tokens, save."""

    def edit(name: str, special: list[str], plain: list[str]) -> tuple[Path, Reference]:
        reference = Reference.from_file(str(FOLDER / name / "tokenizer.json"))
        reference.add_special_tokens([AddedToken(text, special=True) for text in special])
        reference.add_tokens([AddedToken(text, normalized=False) for text in plain])
        reference.save(str(tmp_path / "tokenizer.json"))
        shutil.copy(FOLDER / name / "tokenizer_config.json", tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
        config.pop("added_tokens_decoder", None)  # tools other than transformers do not write it
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return tmp_path, reference

    return edit


@pytest.mark.native
@pytest.mark.parametrize("name", KINDS)
def test_added_tokens_are_cut_out(tuned: Callable[..., tuple[Path, Reference]], llama_ids: Ids, name: str) -> None:
    """Added special and plain tokens give the ids that the library gives, in a vocabulary resized to hold them."""
    folder, reference = tuned(name, ["<|user|>", "<|end|>"], ["<tool>"])
    size = reference.get_vocab_size() + 7
    tokenizer = read_tokenizer(folder, {"vocab_size": size})
    assert tokenizer.n_tokens == size
    types = dict(zip(_keys(tokenizer)["tokens"], _keys(tokenizer)["token_type"], strict=True))
    assert (types["<|user|>"], types["<tool>"]) == (3, 4)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert llama_ids(tokenizer.metadata, text, True) == expected, text


@pytest.mark.native
@pytest.mark.parametrize("name", KINDS)
def test_a_padding_token_without_a_row_is_left_out(
    tuned: Callable[..., tuple[Path, Reference]], llama_ids: Ids, name: str
) -> None:
    """A token that was added without resizing the embedding cannot be used: it is dropped, and that is said."""
    size = Reference.from_file(str(FOLDER / name / "tokenizer.json")).get_vocab_size()
    folder, reference = tuned(name, ["<|padding|>"], [])
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|padding|>"}), "utf-8")
    tokenizer = read_tokenizer(folder, {"vocab_size": size})
    assert tokenizer.n_tokens == size
    assert any("<|padding|>" in note and "left out" in note for note in tokenizer.notes)
    assert _keys(tokenizer).get("padding_token_id") is None
    text = "Hello world"
    assert llama_ids(tokenizer.metadata, text, True) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", KINDS)
def test_a_vocabulary_larger_than_the_embedding_is_refused(name: str) -> None:
    """Pieces of the vocabulary proper without a row are two models mixed up."""
    with pytest.raises(FormatError, match="more tokens than the model has rows"):
        read_tokenizer(FOLDER / name, {"vocab_size": 100})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("n_tokens", [1001, 1008, 2000])
def test_the_vocabulary_is_padded_to_the_embedding(name: str, n_tokens: int) -> None:
    """Where the embedding has more rows than the tokenizer has tokens, unused tokens fill them."""
    keys = _keys(read_tokenizer(FOLDER / name, {"vocab_size": n_tokens}))
    assert len(keys["tokens"]) == len(keys["token_type"]) == n_tokens
    assert keys["tokens"][-1] == f"[PAD{n_tokens - 1}]"
    assert keys["token_type"][-1] == 5
    if "scores" in keys:
        assert len(keys["scores"]) == n_tokens


def test_code_llama_ends_its_filling_in(tmp_path: Path) -> None:
    """The token that ends a filled-in middle is found by its text, as are the others in llama.cpp itself."""
    document = json.loads((FOLDER / "llama2" / "tokenizer.json").read_text("utf-8"))
    first = len(document["model"]["vocab"])
    names = ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"]
    document["added_tokens"] += [{"id": first + i, "content": name, "special": True} for i, name in enumerate(names)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    assert _keys(read_tokenizer(tmp_path, {}))["eot_token_id"] == first + 3
    document["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    assert "eot_token_id" not in _keys(read_tokenizer(tmp_path, {}))


@pytest.mark.native
def test_blanks_added_to_gemma_follow_its_merges(llama_ids: Ids, texts: dict[str, str]) -> None:
    """A Gemma fine-tune with tokenizer.json alone: runs of blanks are cut as by the library, printed as blanks."""
    reference = Reference.from_file(str(FOLDER / "gemma4" / "tokenizer.json"))
    config = json.loads((FOLDER / "gemma4" / "expected.json").read_text("utf-8"))["config"]
    metadata = read_tokenizer(FOLDER / "gemma4", config).metadata
    for label in ("inner_runs", "long_space_run", "python_code", "tabs", "only_spaces"):
        expected = reference.encode(texts[label], add_special_tokens=False).ids
        assert llama_ids(metadata, texts[label], True) == expected, label
