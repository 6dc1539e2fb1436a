"""Byte-level BPE as ranks: tekken.json and tiktoken files, against the same vocabulary with merges."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer import Tokenizer, read_tokenizer
from pipeline.tokenizer.pretokenizers import ROWS
from pipeline.tokenizer.ranks import byte_alphabet, merges_from_ranks

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"
Ids = Callable[..., list[int]]

TEKKEN = next(row.steps[0].removeprefix("Split ") for row in ROWS if row.pre == "tekken")


def _keys(tokenizer: Tokenizer) -> dict[str, Any]:
    return {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}


@pytest.fixture(scope="module")
def ranks() -> list[bytes]:
    """Pieces of a small real BPE by rank: the 256 bytes, then what its merges make."""
    document = json.loads((FOLDER / "gpt2" / "tokenizer.json").read_text("utf-8"))
    letters = {letter: value for value, letter in enumerate(byte_alphabet())}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]]
    made = [bytes(letters[letter] for letter in "".join(pair)) for pair in pairs]
    return [bytes([value]) for value in range(256)] + list(dict.fromkeys(made))


@pytest.fixture
def tekken(tmp_path: Path, ranks: list[bytes]) -> Callable[..., Path]:
    """Write a tekken.json of 20 special tokens with changes to its top level and config."""

    def write(config: dict[str, Any] | None = None, **changes: Any) -> Path:
        entries = [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate([*ranks, b"beyond the vocabulary"])
        ]
        sizes = {"default_vocab_size": len(ranks) + 20, "default_num_special_tokens": 20}
        document = {"config": {"pattern": TEKKEN, **sizes, **(config or {})}, "vocab": entries, **changes}
        (tmp_path / "tekken.json").write_text(json.dumps(document), "utf-8")
        return tmp_path

    return write


def test_merges_come_in_the_order_of_ranks() -> None:
    """Every way to make a piece of two others is a merge; low ranks first."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert merges_from_ranks(ranks) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"c")]


def test_tekken_says_everything_itself(tekken: Callable[..., Path], ranks: list[bytes]) -> None:
    """Rule, special tokens and flags come out of tekken.json alone; pieces beyond the size are no tokens."""
    tokenizer = read_tokenizer(tekken(), {"vocab_size": len(ranks) + 20})
    keys = _keys(tokenizer)
    assert (keys["model"], keys["pre"], len(keys["tokens"])) == ("gpt2", "tekken", len(ranks) + 20)
    assert keys["tokens"][:4] == ("<unk>", "<s>", "</s>", "[INST]")
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["unknown_token_id"]) == (1, 2, 0)
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (True, False)
    assert keys["token_type"][:20] == (3,) * 20
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids) == ("<s>", "</s>", (2,))


def test_tekken_may_name_its_special_tokens(tekken: Callable[..., Path]) -> None:
    """Later versions list them."""
    names = [{"rank": 17, "token_str": "[THINK]", "is_control": True}]
    keys = _keys(read_tokenizer(tekken(special_tokens=names), {}))
    assert keys["tokens"][16:19] == ("[SUFFIX]", "[THINK]", "[/SYSTEM_PROMPT]")


@pytest.mark.native
def test_ids_equal_the_merges_own(
    tekken: Callable[..., Path], llama_ids: Ids, texts: dict[str, str], ranks: list[bytes]
) -> None:
    """Merges derived from the ranks cut like the merges that the ranks were made of."""
    metadata = read_tokenizer(tekken(), {}).metadata
    letters = byte_alphabet()
    names = ["".join(letters[value] for value in piece) for piece in ranks]
    merges = json.loads((FOLDER / "gpt2" / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    split = {"type": "Split", "pattern": {"Regex": TEKKEN}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, last]},
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": merges},
    }
    reference = tokenizers.Tokenizer.from_str(json.dumps(document))
    limits = [
        "arabic",
        "hindi",
        "bengali_tamil",
        "thai_lao",
        "marks_alone",
        "french_nfd",
        "vietnamese_nfd",
        "hebrew_rtl",
    ]
    for label, text in texts.items():
        if label not in limits and "<" not in text and "[" not in text:
            expected = [20 + i for i in reference.encode(text).ids]
            assert llama_ids(metadata, text, True) == expected, label


def test_tiktoken_of_qwen(tmp_path: Path, ranks: list[bytes]) -> None:
    """Qwen 1's rank file, whose class says how text is cut and which special tokens follow."""
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(ranks)]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}', "utf-8")
    tokenizer = read_tokenizer(tmp_path, {})
    keys = _keys(tokenizer)
    assert (keys["pre"], tokenizer.n_tokens, tokenizer.eos) == ("qwen2", len(ranks) + 208, "<|endoftext|>")
    assert keys["tokens"][len(ranks) :][:4] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")
    assert (keys["eos_token_id"], keys["add_bos_token"]) == (len(ranks), False)


def test_tiktoken_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    """A rank file does not say how text is cut."""
    (tmp_path / "other.tiktoken").write_text("YQ== 0\n", "utf-8")
    with pytest.raises(UnsupportedError, match="QWenTokenizer"):
        read_tokenizer(tmp_path, {})


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({}, {"vocab": {}}),
        ({}, {"vocab": []}),
        ({}, {"vocab": [{"rank": 0, "token_bytes": "YQ=="}] * 400}),
        ({}, {"vocab": [{"rank": 0, "token_bytes": "="}] * 400}),
        ({}, {"vocab": [{"rank": 0, "token_bytes": ""}] * 400}),
        ({}, {"vocab": [{"rank": 0, "token_bytes": 5}] * 400}),
        ({}, {"vocab": [7] * 400}),
        ({}, {"special_tokens": {}}),
        ({}, {"special_tokens": [{"rank": -1, "token_str": "a"}]}),
        ({}, {"special_tokens": [{"rank": 3, "token_str": None}]}),
        ({}, {"special_tokens": [{"rank": 3, "token_str": "a"}]}),
        ({"pattern": None}, {}),
        ({"default_vocab_size": 10}, {}),
        ({"default_vocab_size": 10**9}, {}),
        ({"default_vocab_size": "30"}, {}),
        ({"default_num_special_tokens": 0}, {}),
        ({"default_num_special_tokens": -1}, {}),
    ],
)
def test_bad_tekken_files_are_format_errors(
    tekken: Callable[..., Path], config: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Sizes that do not fit, ranks out of order, pieces that are no bytes."""
    with pytest.raises(FormatError, match=r"tekken\.json"):
        read_tokenizer(tekken(config, **changes), {})


@pytest.mark.parametrize(
    "text", ["YQ==", "YQ== 0 0", "YQ== x", "YQ== 0\nYQ== 1", "YQ== 5", "=== 0", " 0", "YQ== 9999999"]
)
def test_bad_tiktoken_files_are_format_errors(tmp_path: Path, text: str) -> None:
    """Each line is a byte string and a rank, and ranks count from 0."""
    (tmp_path / "qwen.tiktoken").write_text(text, "utf-8")
    with pytest.raises(FormatError, match=r"qwen\.tiktoken"):
        read_tokenizer(tmp_path, {})
