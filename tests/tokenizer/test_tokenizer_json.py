"""tokenizer.json that is not what it claims."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.strict_json import MAX_DEPTH
from pipeline.tokenizer import read_tokenizer
from pipeline.tokenizer.bpe import ignore_merges_is_idle
from pipeline.tokenizer.tokenizer_json import parse_document
from pipeline.tokenizer.vocabulary import MAX_TOKENS

Change = Callable[[dict[str, Any]], object]

BAD: dict[str, Change] = {
    "no model": lambda d: d.pop("model"),
    "model is a list": lambda d: d.update(model=[]),
    "no vocab": lambda d: d["model"].pop("vocab"),
    "vocab is a list": lambda d: d["model"].update(vocab=["a"]),
    "empty vocab": lambda d: d["model"].update(vocab={}, merges=[]),
    "id is text": lambda d: d["model"]["vocab"].update(a="0"),
    "id is a bool": lambda d: d["model"]["vocab"].update(b=True),
    "id is a float": lambda d: d["model"]["vocab"].update(b=1.0),
    "negative id": lambda d: d["model"]["vocab"].update(a=-1),
    "huge id": lambda d: d["model"]["vocab"].update(a=MAX_TOKENS),
    "id twice": lambda d: d["model"]["vocab"].update(a=1),
    "no merges": lambda d: d["model"].pop("merges"),
    "merge of three": lambda d: d["model"]["merges"].append("a b c"),
    "merge of one": lambda d: d["model"]["merges"].append(["a"]),
    "merge of numbers": lambda d: d["model"]["merges"].append([1, 2]),
    "merge of an unknown piece": lambda d: d["model"]["merges"].append("a x"),
    "merge to an unknown piece": lambda d: d["model"]["merges"].append("c a"),
    "merge twice": lambda d: d["model"]["merges"].append("a b"),
    "added tokens are an object": lambda d: d.update(added_tokens={}),
    "added token is text": lambda d: d.update(added_tokens=["<end>"]),
    "added token without content": lambda d: d["added_tokens"][0].pop("content"),
    "added token without id": lambda d: d["added_tokens"][0].pop("id"),
    "added token's flag is text": lambda d: d["added_tokens"][0].update(special="yes"),
    "added token's id leaves a hole": lambda d: d["added_tokens"][0].update(id=7),
    "added token's id is taken": lambda d: d["added_tokens"][0].update(id=3),
    "added token has another id in vocab": lambda d: d["added_tokens"][0].update(content="ab"),
    "added token twice": lambda d: d["added_tokens"].append(dict(d["added_tokens"][0])),
    "lone surrogate": lambda d: d["added_tokens"][0].update(content="\ud800"),
    "NUL": lambda d: d["added_tokens"][0].update(content="a\0"),
    "same text twice": lambda d: d["model"]["vocab"].update({"\u2581": 5}) or d.update(
        added_tokens=[{"id": 6, "content": " "}, {"id": 5, "content": "\u2581"}]
    ),
    "normalizer is text": lambda d: d.update(normalizer="NFC"),
    "post_processor is a list": lambda d: d.update(post_processor=[]),
}  # fmt: skip


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_bad_content_is_a_format_error(
    checkpoint: Callable[..., Path], document: dict[str, Any], change: Change
) -> None:
    """Each lie is found, and the error names the file."""
    change(document)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        read_tokenizer(checkpoint(tokenizer=document), {})


@pytest.mark.parametrize(
    ("key", "value"), [("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>"), ("dropout", 0.1)]
)
def test_bpe_that_llama_cpp_lacks_is_refused(document: dict[str, Any], key: str, value: object) -> None:
    """Word endings and random merges have no place in GGUF."""
    document["model"][key] = value
    with pytest.raises(UnsupportedError, match=key):
        parse_document(document, Path("tokenizer.json"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not an object"),
        (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "nested too deep"),
        (b'{"a": ' + b"[" * 200_000 + b"}", "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number of 5,000 characters"),
    ],
)
def test_bad_json_is_a_format_error(tmp_path: Path, text: bytes, what: str) -> None:
    """Broken, repeated, deep and huge JSON ends in an error that names the file."""
    (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(FormatError, match=what):
        read_tokenizer(tmp_path, {})


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """The size is looked at before the content."""
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="too large"):
        read_tokenizer(tmp_path, {})


def test_merges_as_pairs_equal_merges_as_text(document: dict[str, Any]) -> None:
    """The new form of merges is the old one, split."""
    old = parse_document(document, Path("tokenizer.json"))
    document["model"]["merges"] = [["a", "b"], ["ab", "c"]]
    assert parse_document(document, Path("tokenizer.json")).merges == old.merges == (("a", "b"), ("ab", "c"))


def test_a_merge_of_blanks_is_refused(document: dict[str, Any]) -> None:
    """GGUF writes a merge with one blank between its halves, so they cannot hold one."""
    document["model"]["vocab"] = {"a": 0, " ": 1, "a ": 2}
    document["model"]["merges"] = [["a", " "]]
    document["added_tokens"] = []
    with pytest.raises(UnsupportedError, match="blank"):
        parse_document(document, Path("tokenizer.json"))


def test_idle_ignore_merges_is_found(document: dict[str, Any]) -> None:
    """The flag is idle when merges make every piece, and not when one piece stands alone."""
    assert ignore_merges_is_idle(parse_document(document, Path("tokenizer.json")))
    document["model"]["vocab"]["bc"] = 5
    document["added_tokens"][0]["id"] = 6
    assert not ignore_merges_is_idle(parse_document(document, Path("tokenizer.json")))


@given(st.data())
def test_a_damaged_document_never_escapes(demo: Path, data: st.DataObject) -> None:
    """Any value put anywhere in a real file gives a tokenizer or an error of ours."""
    text = json.loads((demo / "tokenizer.json").read_text("utf-8"))
    text["model"]["vocab"] = dict(list(text["model"]["vocab"].items())[:300])
    text["model"]["merges"] = text["model"]["merges"][:3]
    text["added_tokens"] = []
    node: Any = text
    while True:
        key = data.draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(st.sampled_from([None, -1, 1 << 70, 0.5, "", "x", [], {}, [[]], {"type": "x"}, True]))
    with contextlib.suppress(InputError):
        assert parse_document(text, Path("tokenizer.json")).vocab
