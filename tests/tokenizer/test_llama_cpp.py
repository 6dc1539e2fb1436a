"""llama.cpp, given our keys, cuts text into the tokens of the reference library."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from pipeline.tokenizer import read_tokenizer
from pipeline.tokenizer.pretokenizers import ROWS, Row, write_steps
from pipeline.tokenizer.texts import texts as our_texts
from pipeline.types import KV

Ids = Callable[..., list[int]]

# Where llama.cpp's own rule differs from the steps it stands for, by name, with the texts that show it.  The vocabulary
# of that test crosses every border; real ones were trained with the steps, so that the two about digits are never seen.
_MARKS = {  # combining marks are left out of words
    "arabic", "bengali_tamil", "french_nfd", "hebrew_rtl", "hindi", "japanese", "marks_alone", "russian", "thai_lao",
    "vietnamese_nfd",
}  # fmt: skip
_LONG_S = {"contraction_longs"}  # (?i:'s) takes the letter long s along, [sS] does not
_CASES = {"base64", "camel_case", "japanese"}  # the case of letters is lost in the rule's rewriting to bytes
_DIGIT_RUNS = {  # digits stay together
    "arabic", "base64", "c_code", "chinese", "control", "digits_glued", "digits_long", "digits_mixed", "digits_other",
    "digits_short", "fullwidth", "japanese", "json", "mixed_scripts", "python_code", "russian", "url",
}  # fmt: skip
_DIGIT_BYTES = {  # the reference takes bytes written as superscripts and fractions for digits
    "arabic", "astral", "bengali_tamil", "c_code", "chinese", "chinese_rare", "digits_mixed", "digits_other",
    "digits_short", "emoji_zwj", "fullwidth", "greek", "japanese", "korean", "python_code", "russian", "thai_lao",
    "turkish",
}  # fmt: skip
LIMITS = {
    "gpt-4o": _MARKS | _LONG_S,
    "tekken": _MARKS,
    "granite-embed-multi-97m": _LONG_S,
    "exaone-moe": _LONG_S,
    "tiny_aya": _LONG_S | _CASES,
    "deepseek-llm": _DIGIT_RUNS,
    "falcon": _DIGIT_BYTES,
}

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _metadata(folder: Path) -> tuple[KV, ...]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return read_tokenizer(folder, config).metadata


@pytest.mark.native
@pytest.mark.parametrize("name", ["llama3", "qwen2", "demo"])
def test_byte_level_ids_equal_the_reference(
    fixtures: Path, demo: Path, texts: dict[str, str], llama_ids: Ids, name: str
) -> None:
    """Every text gives the ids of the tokenizers library; where NFC changes a text, the changed text does."""
    folder = demo if name == "demo" else fixtures / "arch" / name
    metadata = _metadata(folder)
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    has_nfc = reference.normalizer is not None
    for label, text in texts.items():
        seen = unicodedata.normalize("NFC", text) if has_nfc else text
        expected = reference.encode(text, add_special_tokens=False).ids
        assert llama_ids(metadata, seen, True) == expected, label


def test_text_without_decomposed_characters_needs_no_nfc(texts: dict[str, str]) -> None:
    """The limit is narrow: only these texts of all are changed by NFC."""
    changed = {name for name, text in texts.items() if unicodedata.normalize("NFC", text) != text}
    assert changed <= {
        "contraction_longs", "french_nfd", "vietnamese_nfd", "russian", "chinese_rare", "japanese", "korean",
        "arabic", "hebrew_rtl", "hindi", "thai_lao", "bengali_tamil", "mixed_scripts",
    }  # fmt: skip
    assert len(changed) < len(texts) / 5


@pytest.mark.native
def test_sentencepiece_ids_equal_the_reference(fixtures: Path, texts: dict[str, str], llama_ids: Ids) -> None:
    """Every text gives the ids of the sentencepiece library, which does not parse special tokens."""
    folder = fixtures / "arch" / "llama2"
    metadata = _metadata(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for label, text in texts.items():
        assert llama_ids(metadata, text, False) == reference.encode(text), label


@pytest.mark.native
def test_scores_from_merges_cut_like_the_reference(
    fixtures: Path, tmp_path: Path, texts: dict[str, str], llama_ids: Ids
) -> None:
    """tokenizer.json alone, with scores made of the merges, gives the ids of the tokenizers library."""
    source = fixtures / "arch" / "llama2" / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    metadata = read_tokenizer(tmp_path, {}).metadata
    reference = tokenizers.Tokenizer.from_file(str(source))
    for label, text in texts.items():
        assert llama_ids(metadata, text, True) == reference.encode(text, add_special_tokens=False).ids, label


@pytest.mark.native
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.pre}-{len(row.steps[0])}")
def test_a_row_cuts_like_its_steps(
    fixtures: Path, tmp_path: Path, texts: dict[str, str], llama_ids: Ids, row: Row
) -> None:
    """The rule that llama.cpp has under a row's name cuts text as the row's steps do in the tokenizers library."""
    crossing = json.loads((fixtures / "tokenizers" / "crossing.json").read_text("utf-8"))
    document = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": write_steps(row.steps),
        "decoder": _BYTES,
        "model": {"type": "BPE", "ignore_merges": row.ignore_merges, **crossing},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), "utf-8")
    tokenizer = read_tokenizer(tmp_path, {})
    assert tokenizer.pre == row.pre
    reference = tokenizers.Tokenizer.from_file(str(path))

    def differing(samples: dict[str, str]) -> set[str]:
        return {
            label
            for label, text in samples.items()
            if llama_ids(tokenizer.metadata, text, True) != reference.encode(text, add_special_tokens=False).ids
        }

    assert differing(texts) == LIMITS.get(row.pre, set())
    assert bool(differing(our_texts())) == (row.pre in LIMITS)
