"""A pre_tokenizer that no row writes like that is recognised by what it does to texts, and never against the rows."""

from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pipeline.errors import ResourceError, UnsupportedError
from pipeline.tokenizer.pretokenizers import GPT2, LLAMA3, QWEN2, ROWS, Row, write_steps
from pipeline.tokenizer.recognise import recognise
from pipeline.tokenizer.texts import crossings, texts

PATH = Path("tokenizer.json")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

# Rows of one meaning: the patterns are written differently, but \s* takes all line ends with it, and a class in a class
# is that class.
_EQUAL = [{"qwen2", "bailingmoe"}, {"llama-bpe", "dbrx"}, {"gpt-4o", "granite-embed-multi-97m"}]


def _sequence(*patterns: str, behavior: str = "Isolated") -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False} for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTES]}


def _recognise(pre_tokenizer: Any, ignore_merges: bool = False, idle: bool = False) -> tuple[str, tuple[str, ...]]:
    row, notes = recognise(None, pre_tokenizer, ignore_merges, lambda: idle, PATH)
    return row.pre, notes


def test_the_texts_cover_what_tokenizers_stumble_over() -> None:
    """About eighty texts, with every class of characters and the forms that normalizers change."""
    together = "".join(texts().values())
    classes = {unicodedata.category(character) for character in together}
    assert classes >= {
        "Lu",
        "Ll",
        "Lt",
        "Lm",
        "Lo",
        "Mn",
        "Mc",
        "Nd",
        "Nl",
        "No",
        "Zs",
        "Zl",
        "Zp",
        "Cc",
        "Cf",
        "Co",
        "Cn",
    }
    assert len(texts()) >= 80
    assert len(crossings()) > 900
    assert any(unicodedata.normalize("NFC", text) != text for text in texts().values())


def _cuts(row: Row, samples: list[str]) -> tuple[tuple[str, ...], ...]:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": write_steps(row.steps), "model": model}
    cut = tokenizers.Tokenizer.from_str(json.dumps(document)).pre_tokenizer.pre_tokenize_str
    return tuple(tuple(piece for piece, _ in cut(text)) for text in samples)


def test_the_texts_tell_all_rows_apart() -> None:
    """What a row does is done by no other row, but for those of one meaning."""
    alike: dict[object, set[str]] = {}
    for row in ROWS:
        alike.setdefault(_cuts(row, [*texts().values(), *crossings()]), set()).add(row.pre)
    alone = {row.pre for row in ROWS} - set().union(*_EQUAL)
    assert sorted(map(sorted, alike.values())) == sorted([*map(sorted, _EQUAL), *([name] for name in alone)])


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (_sequence(QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:'(?:s|t|re|ve|m|ll|d))")), "qwen2"),
        (_sequence(LLAMA3.replace(r"\s*[\r\n]+", r"\s*[\r\n]")), "dbrx"),
        (_sequence(GPT2.replace(r" ?\p{L}+", r"(?: |)\p{L}+")), "gpt-2"),
        (_sequence(r"\p{Nd}|\p{Nl}|\p{No}", GPT2), "starcoder"),
        (_sequence(QWEN2, behavior="MergedWithNext"), "qwen2"),  # all is match, there is no next
        (_sequence(QWEN2, behavior="Removed"), None),
        (_sequence(QWEN2.replace(r"\p{N}", r"\p{N}{1,2}")), None),
        (_sequence(QWEN2.replace("'ll|", "")), None),
        (_sequence(QWEN2.replace(r"+[\r\n]*", "+")), "seed-coder"),
        ({"type": "Sequence", "pretokenizers": []}, None),
    ],
)
def test_another_spelling_is_recognised(pre_tokenizer: dict[str, Any], name: str | None) -> None:
    """Equal cuts on all texts are the same rule, and that is said; any other cut is refused."""
    if name is None:
        with pytest.raises(UnsupportedError, match="unknown"):
            _recognise(pre_tokenizer)
    else:
        found, notes = _recognise(pre_tokenizer)
        assert found == name
        assert "a way of its own" in notes[0]


def test_the_flag_counts_here_too() -> None:
    """Among rows of one behaviour ignore_merges chooses, and one that no row has must be idle."""
    own = _sequence(LLAMA3.replace(r"\s*[\r\n]+", r"\s*[\r\n]"))
    assert _recognise(own, ignore_merges=True)[0] == "llama-bpe"
    assert _recognise(own, ignore_merges=False)[0] == "dbrx"
    spelt = _sequence(r"\p{Nd}|\p{Nl}|\p{No}", GPT2)
    assert _recognise(spelt, ignore_merges=True, idle=True)[0] == "starcoder"
    with pytest.raises(UnsupportedError, match="ignore_merges true"):
        _recognise(spelt, ignore_merges=True)


def test_what_the_file_says_comes_first() -> None:
    """A row with the file's own steps is taken without running anything, even where another row does the same."""
    assert _recognise(write_steps(next(row.steps for row in ROWS if row.pre == "bailingmoe"))) == ("bailingmoe", ())


def test_an_unknown_one_shows_where_it_differs() -> None:
    """The error names the nearest rule, the first text that is cut differently, and both cuts."""
    with pytest.raises(UnsupportedError, match="no row has its steps") as error:
        _recognise(_sequence(QWEN2.replace(r"\p{N}", r"\p{N}{1,7}")))
    message = str(error.value)
    assert "nearest is 'llama-bpe'" in message
    assert "43210" in message
    assert "pretokenizers.py" in message


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        _sequence("("),
        _sequence("(?<a>x|\\g<a>)"),
        _sequence("(" * 50_000 + ")" * 50_000),
        {"type": "Other"},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True, "more": 1}, {"type": "X"}],
        },
    ],
)
def test_what_the_library_cannot_run_is_refused(pre_tokenizer: dict[str, Any]) -> None:
    """Broken patterns and steps of other versions end in an error of ours."""
    with pytest.raises(UnsupportedError):
        _recognise(pre_tokenizer)


def test_a_hostile_pattern_is_stopped() -> None:
    """A pattern that takes for ever is ended, with its process."""
    start = time.monotonic()
    with pytest.raises((ResourceError, UnsupportedError)):
        _recognise(_sequence(r"(?:(?:[\s\S]*)*)*\1?(?:x+x+)+y$"))
    assert time.monotonic() - start < 120
