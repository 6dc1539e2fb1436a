"""WordPiece: BERT and its kin, from tokenizer.json and from vocab.txt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer import Tokenizer, read_tokenizer

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "bert"
Ids = Callable[..., list[int]]

# Hangul vowels and keycaps dropped as if they were accents, U+0085 no blank, words of more than 100 characters cut,
# U+2581 taken for the beginning of a word.  A vocabulary with pieces for vowel signs shows more.
LIMITS = {"korean", "nbsp_spaces", "sp_symbol", "long_word", "emoji_zwj", "marks_alone"}


def _keys(tokenizer: Tokenizer) -> dict[str, Any]:
    return {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write tokenizer.json of the fixture with changes to its top level (and to the model's)."""

    def call(model: dict[str, Any] | None = None, **changes: Any) -> Path:
        document = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
        document.update(changes)
        document["model"].update(model or {})
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        shutil.copy(FOLDER / "tokenizer_config.json", tmp_path)
        return tmp_path

    return call


def _normalizer(**flags: Any) -> dict[str, Any]:
    start = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **start, **flags}


@pytest.mark.native
def test_ids_equal_the_reference(llama_ids: Ids, texts: dict[str, str]) -> None:
    """Every text gives the ids of the tokenizers library, but for the known limits, which all show."""
    metadata = read_tokenizer(FOLDER, {}).metadata
    reference = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    differing = {
        label
        for label, text in texts.items()
        if llama_ids(metadata, text, True) != reference.encode(text, add_special_tokens=False).ids
    }
    assert differing == LIMITS


@pytest.mark.native
@pytest.mark.parametrize(
    "flags",
    [{"lowercase": False}, {"lowercase": True, "strip_accents": False}, {"lowercase": False, "strip_accents": True}],
)
def test_the_normalizer_is_followed(llama_ids: Ids, write: Callable[..., Path], flags: dict[str, bool]) -> None:
    """Case and accents are kept or dropped as the file says."""
    folder = write(normalizer=_normalizer(**flags))
    metadata = read_tokenizer(folder, {}).metadata
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("Hello World", "D\u00e9j\u00e0 VU", "caf\u00e9 na\u00efve"):
        assert llama_ids(metadata, text, True) == reference.encode(text, add_special_tokens=False).ids


def test_vocab_txt_equals_tokenizer_json(tmp_path: Path) -> None:
    """The old form, with what tokenizer_config.json says, gives the keys of the new one."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, tmp_path)
    assert _keys(read_tokenizer(tmp_path, {})) == _keys(read_tokenizer(FOLDER, {}))


def test_vocab_txt_alone_is_bert(tmp_path: Path) -> None:
    """Without any other file the special tokens are BERT's, and text becomes lower case."""
    shutil.copy(FOLDER / "vocab.txt", tmp_path)
    keys = _keys(read_tokenizer(tmp_path, {}))
    whole = _keys(read_tokenizer(FOLDER, {}))
    same = ("tokens", "token_type", "bos_token_id", "seperator_token_id", "mask_token_id", "add_bos_token")
    assert {key: keys[key] for key in same} == {key: whole[key] for key in same}
    assert keys["normalizer.lowercase"] is True


def test_a_repeated_line_counts_once(tmp_path: Path) -> None:
    """Of two equal lines the last is the piece, as in transformers; the id of the first is unused."""
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\nb\na\n", "utf-8")
    keys = _keys(read_tokenizer(tmp_path, {}))
    assert keys["tokens"][3:] == ("\u2581[PAD3]", "\u2581b", "\u2581a")


def test_pieces_are_written_for_llama_cpp(write: Callable[..., Path]) -> None:
    """Beginnings of words are marked instead of the rest, and special and added tokens stay as they are."""
    document = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    added = [*document["added_tokens"], {"id": 512, "content": "New", "special": False}]
    keys = _keys(read_tokenizer(write(added_tokens=added), {}))
    vocab = document["model"]["vocab"]
    inside = next(text for text in vocab if text.startswith("##"))
    outside = next(text for text in vocab if text.isalpha())
    assert keys["tokens"][vocab[inside]] == inside[2:]
    assert keys["tokens"][vocab[outside]] == "\u2581" + outside
    assert keys["tokens"][:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert (keys["tokens"][512], keys["token_type"][512]) == ("New", 4)


def test_bert_processing_is_the_template(write: Callable[..., Path]) -> None:
    """The older spelling of the post_processor gives the same flags."""
    processor = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    assert _keys(read_tokenizer(write(post_processor=processor), {})) == _keys(read_tokenizer(FOLDER, {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": _normalizer(clean_text=False)},
        {"normalizer": _normalizer(handle_chinese_chars=False)},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"continuing_subword_prefix": "@@"}},
    ],
)
def test_other_steps_are_refused(write: Callable[..., Path], changes: dict[str, Any]) -> None:
    """llama.cpp cleans text, cuts Chinese and marks pieces in one way only."""
    with pytest.raises(UnsupportedError):
        read_tokenizer(write(**changes), {})


@pytest.mark.parametrize(
    "text", [b"", b"[UNK]\n[CLS]\n", b"[UNK]\n[CLS]\n[SEP]\n\xff\n", b"[UNK]\n[CLS]\n[SEP]\n\x00\n", b"a\n" * 10]
)
def test_bad_vocab_txt_is_a_format_error(tmp_path: Path, text: bytes) -> None:
    """A vocabulary needs its special tokens, and text."""
    (tmp_path / "vocab.txt").write_bytes(text)
    with pytest.raises(FormatError):
        read_tokenizer(tmp_path, {})


def test_special_tokens_are_required(write: Callable[..., Path]) -> None:
    """llama.cpp puts [CLS] and [SEP] around every text: a tokenizer that does not name them is refused."""
    folder = write(post_processor=None)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(FormatError, match="cls_token"):
        read_tokenizer(folder, {})
