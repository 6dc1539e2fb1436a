"""Recognising llama.cpp's rule by what the normalizer and the pre_tokenizer say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer.pretokenizers import GPT2, LLAMA3, QWEN2, ROWS, canonical_regex, read_steps
from pipeline.tokenizer.recognise import recognise

PATH = Path("tokenizer.json")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _name(pre_tokenizer: Any, ignore_merges: bool = False, normalizer: Any = None, idle: bool = False) -> str:
    return recognise(normalizer, pre_tokenizer, ignore_merges, lambda: idle, PATH)[0].pre


def test_rows_are_distinct() -> None:
    """No two rows claim the same steps with the same flag."""
    keys = [(row.steps, row.ignore_merges) for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_rows_are_in_the_one_form() -> None:
    """Every row is written as `canonical_regex` writes, else nothing could match it."""
    for row in ROWS:
        assert all(canonical_regex(step) in (step, step.replace(r"\p{N}{1}", r"\p{N}")) for step in row.steps), row.pre


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({**BYTES, "use_regex": True}, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False}, "gpt-2"),
        (_sequence(_split(GPT2), BYTES), "gpt-2"),
        (_sequence(_split(LLAMA3), BYTES), "dbrx"),
        (_sequence(_sequence(_split(QWEN2)), _sequence(BYTES)), "qwen2"),
        (_sequence(_split(QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")), BYTES), "qwen2"),
        (_sequence(_split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1}|")), BYTES), "qwen2"),
        (_sequence(_split(LLAMA3, "Removed", True), BYTES), "dbrx"),
        (_sequence({"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}), "starcoder"),
        (_sequence(_split(r"\p{N}"), _split(GPT2), BYTES), "starcoder"),
    ],
)
def test_what_changes_nothing_is_ignored(pre_tokenizer: Any, name: str) -> None:
    """Nesting, control characters, Removed with invert, Digits and implied flags are other spellings of one thing."""
    assert _name(pre_tokenizer) == name


def test_ignore_merges_tells_rules_apart() -> None:
    """llama.cpp looks whole words up under some names only, so the flag of the file chooses the name."""
    llama3 = _sequence(_split(LLAMA3), BYTES)
    assert _name(llama3, ignore_merges=True) == "llama-bpe"
    assert _name(llama3, ignore_merges=False) == "dbrx"


def test_a_flag_that_no_rule_has_is_refused_unless_it_is_idle() -> None:
    """Where no rule has the flag, it must make no difference for the vocabulary."""
    qwen2 = _sequence(_split(QWEN2), BYTES)
    assert _name(qwen2, ignore_merges=True, idle=True) == "qwen2"
    with pytest.raises(UnsupportedError, match="ignore_merges true"):
        _name(qwen2, ignore_merges=True)


@pytest.mark.parametrize("normalizer", [None, {"type": "Sequence", "normalizers": []}])
def test_no_normalizer_is_silent(normalizer: Any) -> None:
    """An empty sequence is no normalizer."""
    assert recognise(normalizer, _sequence(_split(QWEN2), BYTES), False, lambda: False, PATH)[1] == ()


def test_nfc_is_noted() -> None:
    """NFC is a known limit of llama.cpp, said in the notes."""
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    row, notes = recognise(normalizer, _sequence(_split(QWEN2), BYTES), False, lambda: False, PATH)
    assert row.pre == "qwen2"
    assert "NFC" in notes[0]


@pytest.mark.parametrize("kind", ["NFKC", "NFD", "NFKD", "Lowercase", "StripAccents", "Replace"])
def test_other_normalizers_are_refused(kind: str) -> None:
    """What llama.cpp cannot do to text is refused, not dropped."""
    with pytest.raises(UnsupportedError, match=kind):
        _name(_sequence(_split(QWEN2), BYTES), normalizer={"type": kind})


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        _sequence(_split(QWEN2)),
        _sequence(BYTES, _split(QWEN2)),
        _sequence(_split(QWEN2, "Removed"), BYTES),
        _sequence(_split(GPT2, "MergedWithNext"), _split(r"\p{N}"), BYTES),
        _sequence(_split(r"\p{N}", "Removed", True), _split(GPT2), BYTES),
        _sequence({"type": "Whitespace"}, BYTES),
        _sequence({"type": "Digits", "individual_digits": False}, {**BYTES, "use_regex": True}),
        {**BYTES, "add_prefix_space": True},
    ],
)
def test_what_changes_something_is_refused(pre_tokenizer: Any) -> None:
    """Missing bytes, another order, dropped text, a space before the text: each is another tokenizer."""
    with pytest.raises(UnsupportedError):
        _name(pre_tokenizer)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda node: (
            st.lists(node, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "pretokenizers", "pattern", "Regex", "behavior"]), node, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_nonsense_is_an_input_error(node: Any) -> None:
    """Whatever stands there, the answer is an error of ours."""
    with pytest.raises((FormatError, UnsupportedError)):
        read_steps(node, PATH)
