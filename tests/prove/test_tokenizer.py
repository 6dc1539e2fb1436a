"""The engine's tokenizer beside the checkpoint's own: equal, or different by a known limit that is shown to be it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError
from pipeline.prove._limits import LIMITS, engine_of
from pipeline.prove._reference import Reference, guarded, open_reference
from pipeline.prove._stub import write_stub
from pipeline.prove.tokenizer import (
    Comparison,
    compare,
    compare_keys,
    compare_session,
)
from pipeline.runtime import open_runtime
from pipeline.tokenizer import read_tokenizer
from pipeline.tokenizer.pretokenizers import ROWS, write_steps
from pipeline.types import KV

Metadata = dict[str, KV]
Engine = Callable[[Metadata], Callable[[str, bool], list[int]]]
Edit = Callable[[dict[str, Any]], object]

_FIRST = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


def _flagged(content: str, **flags: bool) -> Edit:
    """Add one token with flags, as the next id."""

    def edit(document: dict[str, Any]) -> None:
        table = document["added_tokens"]
        highest = max((token["id"] for token in table), default=-1)
        base = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        next_id = max(highest + 1, len(document["model"]["vocab"]))
        table.append({**base, "id": next_id, "content": content, **flags})

    return edit


def _plain_piece(text: str) -> Edit:
    """Put one more piece in the vocabulary, which no merge makes, in the place of the last."""

    def edit(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        vocab[text] = vocab.pop(list(vocab)[-1])
        document["model"]["merges"].pop()

    return edit


def _rule(pre: str) -> Edit:
    """Make a byte-level BPE whose merges cross every border, cut by one rule first."""

    def edit(document: dict[str, Any]) -> None:
        row = next(row for row in ROWS if row.pre == pre)
        crossing = json.loads((Path(__file__).parent.parent / "fixtures/tokenizers/crossing.json").read_text("utf-8"))
        document.update(pre_tokenizer=write_steps(row.steps), added_tokens=[], normalizer=None, post_processor=None)
        document["model"] = {"type": "BPE", "ignore_merges": row.ignore_merges, **crossing}

    return edit


def _unigram(*pieces: tuple[str, float], byte_fallback: bool = False) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *map(list, pieces)]
        special = document["added_tokens"][:3]
        document.update(added_tokens=special, normalizer=None)
        document["model"] = {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": byte_fallback}

    return edit


def _blanks_merge_last(document: dict[str, Any]) -> None:
    """Let a blank go with the letter that follows before blanks come together, and be written as SentencePiece does."""
    model = document["model"]
    model["merges"].sort(key=lambda pair: not "".join(pair).strip("\u2581"))
    model["merges"].insert(0, ["\u2581", "r"])
    model["vocab"]["\u2581r"] = len(model["vocab"])


def _nothing(_document: dict[str, Any]) -> None:
    """Take the fixture as it stands."""


_LETTERS = tuple((letter, -5.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz")
_BYTES = tuple((f"<0x{value:02X}>", -9.0) for value in range(256))

# The fixture, what is done to it, and a text on which the limit must show; for each row of the table.
SHOWN: dict[str, tuple[str, Edit, str]] = {
    "nfc": ("qwen2", _nothing, "french, decomposed"),
    "promoted_special": ("gpt2", _plain_piece("</s>"), "chat tokens"),
    "mark_class": ("gpt2", _rule("tekken"), "hindi"),
    "long_s": ("gpt2", _rule("gpt-4o"), "long s"),
    "tiny_aya": ("gpt2", _rule("tiny_aya"), "cases"),
    "literal_space_symbol": ("gemma4", _nothing, "blank symbol"),
    "space_prefix": ("llama2", lambda d: d.update(normalizer=None, pre_tokenizer=_FIRST), "chat tokens"),
    "strip": ("roberta", _nothing, "tokens among blanks"),
    "single_word": ("qwen2", _flagged("ell", single_word=True), "sentence"),
    "wordpiece": ("bert", _nothing, "long word"),
    "charsmap": ("xlm_roberta", _nothing, "next line"),
    "unigram_no_byte_fallback": ("t5_v10", _unigram(*_LETTERS, *_BYTES, byte_fallback=True), "chinese"),
    # three times -0.3 is not -0.9 in float64, which the reference adds up, nor in GGUF's float32, and not by as much
    "unigram_tie": ("t5_v10", _unigram(*_LETTERS[:-1], ("z", -0.3), ("zzz", -0.9)), "repeated letter"),
}


@pytest.fixture
def edited(tokenizer_fixtures: Path, tmp_path: Path) -> Callable[..., tuple[Path, Metadata]]:
    """Copy a fixture's tokenizer.json with an edit; give the folder and our keys for it."""

    def write(name: str, edit: Edit) -> tuple[Path, Metadata]:
        document = json.loads((tokenizer_fixtures / name / "tokenizer.json").read_text("utf-8"))
        edit(document)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        settings = json.loads((tokenizer_fixtures / name / "tokenizer_config.json").read_text("utf-8"))
        settings.pop("added_tokens_decoder", None)  # the edit may have changed them
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        config = json.loads((tokenizer_fixtures / name / "expected.json").read_text("utf-8"))["config"]
        tokenizer = read_tokenizer(tmp_path, {"model_type": config["model_type"]})
        return tmp_path, {kv.key: kv for kv in tokenizer.metadata}

    return write


def _compare(engine: Engine, folder: Path, metadata: Metadata) -> Comparison:
    return compare(engine(metadata), engine_of(metadata), open_reference(folder))


def test_every_limit_is_shown() -> None:
    """The table of what shows them has each limit but the one that only other converters' files have."""
    assert {limit.name for limit in LIMITS} == SHOWN.keys() | {"space_run_user_defined"}


@pytest.mark.native
@pytest.mark.parametrize("name", SHOWN)
def test_a_limit_shows_and_is_named(
    engine_tokenize: Engine, edited: Callable[..., tuple[Path, Metadata]], name: str
) -> None:
    """The engine differs on the text, for the reason that is found; nothing else is left unexplained."""
    fixture, edit, label = SHOWN[name]
    comparison = _compare(engine_tokenize, *edited(fixture, edit))
    found = {difference.name: difference.limits for difference in comparison.differences}
    assert name in found[label]
    assert comparison.unexplained == ()
    check = comparison.check()
    assert check.state == "proven"
    assert next(limit.says for limit in LIMITS if limit.name == name) in check.detail


@pytest.mark.native
def test_runs_of_blanks_as_added_tokens(engine_tokenize: Engine, edited: Callable[..., tuple[Path, Metadata]]) -> None:
    """A file whose runs of blanks are user-defined tokens cuts them out first; ours are plain pieces and do not."""
    folder, metadata = edited("gemma4", _blanks_merge_last)
    tokens = list(metadata["tokenizer.ggml.tokens"].value)
    types = list(metadata["tokenizer.ggml.token_type"].value)
    for index, text in enumerate(tokens):
        if len(text) > 1 and not text.strip("\u2581"):
            tokens[index], types[index] = text.replace("\u2581", " "), 4
    for key, values in (("tokens", tokens), ("token_type", types)):
        kv = metadata[f"tokenizer.ggml.{key}"]
        metadata[kv.key] = replace(kv, value=tuple(values))
    comparison = _compare(engine_tokenize, folder, metadata)
    assert comparison.limits.get("space_run_user_defined", 0) > 0
    assert comparison.unexplained == ()


@pytest.mark.native
@pytest.mark.parametrize("name", ["llama3", "llama2", "qwen3", "deepseek_v3", "falcon", "phi3", "modernbert"])
def test_a_right_vocabulary_is_proven(engine_tokenize: Engine, tokenizer_fixtures: Path, name: str) -> None:
    """Our keys for a checkpoint differ from its own tokenizer by known limits at most."""
    folder = tokenizer_fixtures / name
    metadata = {kv.key: kv for kv in read_tokenizer(folder, {}).metadata}
    comparison = _compare(engine_tokenize, folder, metadata)
    assert comparison.unexplained == ()
    assert comparison.n_texts > 85
    assert set(comparison.limits) <= {"nfc", "strip"}


def _other_rule(metadata: Metadata) -> Metadata:
    kv = metadata["tokenizer.ggml.pre"]
    return {**metadata, kv.key: replace(kv, value="falcon")}


def _other_order(metadata: Metadata) -> Metadata:
    kv = metadata["tokenizer.ggml.merges"]
    return {**metadata, kv.key: replace(kv, value=kv.value[::-1])}


def _swapped(metadata: Metadata) -> Metadata:
    kv = metadata["tokenizer.ggml.tokens"]
    return {**metadata, kv.key: replace(kv, value=(kv.value[1], kv.value[0], *kv.value[2:]))}


@pytest.mark.native
@pytest.mark.parametrize("break_it", [_other_rule, _other_order, _swapped])
@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_a_wrong_vocabulary_is_different(
    engine_tokenize: Engine, tokenizer_fixtures: Path, name: str, break_it: Callable[[Metadata], Metadata]
) -> None:
    """Another rule, merges in another order, two tokens swapped: no limit explains it, and the check says so."""
    folder = tokenizer_fixtures / name
    metadata = break_it({kv.key: kv for kv in read_tokenizer(folder, {}).metadata})
    comparison = _compare(engine_tokenize, folder, metadata)
    assert comparison.unexplained
    check = comparison.check()
    assert (check.name, check.state) == ("tokenizer", "different")
    assert comparison.unexplained[0].name in check.detail


@pytest.mark.native
@pytest.mark.parametrize("name", ["gpt2", "llama2", "bert", "t5_v10", "gemma4"])
def test_a_server_compares_a_checkpoint(llama: Any, tokenizer_fixtures: Path, name: str) -> None:
    """A vocabulary of each model of GGUF's is loaded by the server without any weights, and compared."""
    config = json.loads((tokenizer_fixtures / name / "expected.json").read_text("utf-8"))["config"]
    keys = read_tokenizer(tokenizer_fixtures / name, config).metadata
    comparison = compare_keys(keys, tokenizer_fixtures / name)
    assert comparison.check().state == "proven", comparison.unexplained[:3]


@pytest.mark.native
def test_keys_and_a_session_compare_alike(llama: Any, demo: Path, tmp_path: Path) -> None:
    """The keys alone, and a model that already runs, give the same."""
    tokenizer = read_tokenizer(demo, {})
    path = tmp_path / "demo.gguf"
    write_stub(path, tokenizer.metadata)
    from_keys = compare_keys(tokenizer.metadata, demo)
    with open_runtime(path, n_ctx=64) as session:
        from_session = compare_session(session, {kv.key: kv for kv in tokenizer.metadata}, open_reference(demo))
    assert from_keys == from_session
    assert from_keys.unexplained == ()
    assert set(from_keys.limits) == {"nfc"}


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("llama2", ["tokenizer.model"], "sentencepiece on tokenizer.model"),
        ("xlm_roberta", ["sentencepiece.bpe.model"], "renumbered"),
        ("bert", ["vocab.txt"], "tokenizers on vocab.txt"),
    ],
)
def test_the_reference_of_older_forms(
    tokenizer_fixtures: Path, tmp_path: Path, name: str, files: list[str], said: str
) -> None:
    """Without tokenizer.json the reference is the library of the file that is there, with the same ids."""
    for file in files:
        shutil.copy(tokenizer_fixtures / name / file, tmp_path)
    reference = open_reference(tmp_path)
    assert said in reference.name
    whole = open_reference(tokenizer_fixtures / name)
    text = "Hello world, this is a simple test."
    assert reference.encode(text) == whole.encode(text)


def test_what_a_library_raises_is_ours() -> None:
    """An exception, or a panic of the Rust part, which is no Exception, is our error; what ends the process is not."""

    class PanicException(BaseException):
        """What pyo3 raises."""

    for raised in (ValueError("x"), PanicException("y")):

        def encode(_text: str, raised: BaseException = raised) -> list[int]:
            raise raised

        with pytest.raises(UnsupportedError, match="own tokenizer fails"):
            guarded(encode)("a")

    class Stopped(BaseException):
        """What a signal raises."""

    for ends in (KeyboardInterrupt, SystemExit, Stopped):

        def interrupted(_text: str, ends: type[BaseException] = ends) -> list[int]:
            raise ends

        with pytest.raises(ends):
            guarded(interrupted)("a")


def test_explaining_is_bounded() -> None:
    """An engine that is wrong everywhere is found out without trying everything for every text."""
    calls = 0

    def tokenize(_text: str, _parses: bool) -> list[int]:
        nonlocal calls
        calls += 1
        return [calls]

    metadata: Metadata = {}
    comparison = compare(tokenize, engine_of(metadata), Reference("none", lambda text: [len(text)], False))
    assert len(comparison.unexplained) > 80
    assert calls < 4000
