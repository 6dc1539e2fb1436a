"""What llama.cpp's tokenizers are known not to do: one row for each, with a way to show that a difference is that.

A row does not explain a difference by the looks of a text.  It changes the text, or the checkpoint's own tokenizer, so
that the limit no longer plays a part; only if the two then give the same ids the difference was this limit alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.prove._reference import Reference
from pipeline.tokenizer.pretokenizers import pretokenizers
from pipeline.tokenizer.vocabulary import BLANK, TokenType
from pipeline.types import KV

_NOWHERE = Path("tokenizer.json")


@dataclass(frozen=True)
class Engine:
    """What the GGUF says of its tokenizer: *types* by the text of a token, the rest under GGUF's names."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: dict[str, int]
    scores: tuple[float, ...]
    add_space_prefix: bool
    unknown: int | None


def engine_of(metadata: Mapping[str, KV]) -> Engine:
    """Read the tokenizer's part of a GGUF header."""

    def value(key: str, default: Any) -> Any:
        kv = metadata.get(f"tokenizer.ggml.{key}")
        return default if kv is None else kv.value

    tokens = tuple(value("tokens", ()))
    return Engine(
        model=value("model", ""),
        pre=value("pre", "default"),
        tokens=tokens,
        types=dict(zip(tokens, value("token_type", ()), strict=False)),
        scores=tuple(value("scores", ())),
        add_space_prefix=value("add_space_prefix", True),
        unknown=value("unknown_token_id", None),
    )


Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Repair:
    """One way to take a limit out of the comparison: another text, or a change to the reference's document.

    *key* names the change, so that it is made once for all texts.
    """

    text: str | None = None
    change: Change | None = None
    key: Hashable = None


@dataclass(frozen=True)
class Limit:
    """One thing that llama.cpp does otherwise.

    *repairs* gives the ways to take it out for a text; none where it plays no part.  *equal* tells whether two lists of
    ids, the reference's and the engine's, are the same but for this limit.
    """

    name: str
    says: str
    repairs: Callable[[Engine, Reference, str], list[Repair]] = lambda _engine, _reference, _text: []
    equal: Callable[[Engine, list[int], list[int]], bool] | None = None


def _other_text(text: str, changed: str) -> list[Repair]:
    return [Repair(text=changed)] if changed != text else []


def _nfc(engine: Engine, reference: Reference, text: str) -> list[Repair]:
    if engine.model != "gpt2" or not reference.normalizes("NFC"):
        return []
    return _other_text(text, unicodedata.normalize("NFC", text))


# Texts of tokens that llama.cpp takes for control tokens, whatever their type (`llama_vocab::impl::load`).
_PROMOTED = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response|>", "[e~[",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",
    "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>",
    "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>", "<|code_suffix|>",
    "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
    "\u2581<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>", "<|channel|>",
    "<|message|>", "<|start|>", "<|constrain|>",
})  # fmt: skip


def _promoted(engine: Engine, reference: Reference, text: str) -> list[Repair]:
    found = [t for t in sorted(_PROMOTED) if t in text and engine.types.get(t) == TokenType.NORMAL]
    if not reference.parses_special:
        return []
    groups = [group for n in range(len(found), 0, -1) for group in combinations(found, n)]
    return [Repair(change=_adding(engine, group), key=("adding", *group)) for group in groups[:31]]


def _adding(engine: Engine, texts: tuple[str, ...]) -> Change:
    def change(document: dict[str, Any]) -> None:
        flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
        more = [{"id": engine.tokens.index(text), "content": text, **flags} for text in texts]
        document["added_tokens"] = sorted(
            [*(document.get("added_tokens") or ()), *more], key=lambda token: int(token["id"])
        )

    return change


# Classes of letters in the patterns of gpt-4o and tekken, and what llama.cpp has in their places.
_UPPER = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"(?:(?=\p{L})[^a-z])")
_LOWER = (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"(?:(?=\p{L})[^A-Z])")
_MARKLESS = frozenset({"gpt-4o", "llama4", "minimax-m2", "tekken"})


def _marks(engine: Engine, reference: Reference, text: str) -> list[Repair]:
    if engine.pre not in _MARKLESS or text.isascii() or reference.document is None:
        return []
    return [Repair(change=_without_marks, key="without marks")]


def _without_marks(document: dict[str, Any]) -> None:
    steps = pretokenizers(document["pre_tokenizer"], _NOWHERE)
    for step in steps:
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern:
            for theirs, llamas in (_UPPER, _LOWER):
                pattern["Regex"] = pattern["Regex"].replace(theirs, llamas)


def _long_s(_engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    return _other_text(text, text.replace("\u017f", "x").replace("\u212a", "x"))


def _tiny_aya(engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    return _other_text(text, re.sub(r" *\d", "", text.lower())) if engine.pre == "tiny_aya" else []


def _blank_symbol(engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    if engine.model in ("gpt2", "bert") or BLANK not in text:
        return []
    return [Repair(text=text.replace(BLANK, " ")), Repair(text=text.replace(BLANK, ""))]


def _blank_runs(engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    cut = [t for t, kind in engine.types.items() if kind == TokenType.USER_DEFINED and t and not t.strip(" ")]
    if engine.model not in ("llama", "gemma4") or not cut:
        return []
    return _other_text(text, " ".join(part for part in text.split(" ") if part))


def _wordpiece(engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    """Leave out what llama.cpp takes for accents, and words that the reference takes for unknown by their length."""
    if engine.model != "bert":
        return []
    kept = [" " if c in "\u0085\u2581" else c for c in unicodedata.normalize("NFD", text) if not _is_mark(c)]
    return _other_text(text, " ".join(word for word in "".join(kept).split() if len(word) < 100))


def _is_mark(character: str) -> bool:
    is_jamo = "\u1100" <= character <= "\u11ff"  # vowels of decomposed Hangul count as accents, too
    return is_jamo or unicodedata.category(character).startswith("M")


def _charsmap(engine: Engine, reference: Reference, text: str) -> list[Repair]:
    if engine.model != "t5" or reference.document is None:
        return []
    composed = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFKC", text))
    plain = "".join(c for c in composed if not unicodedata.category(c).startswith("M"))
    return [*_other_text(text, composed), *_other_text(text, plain)]


def _flag(*names: str) -> Callable[[Engine, Reference, str], list[Repair]]:
    """Make the repairs for a flag of added tokens that llama.cpp does not have."""

    def change(document: dict[str, Any]) -> None:
        for token in document["added_tokens"]:
            token.update(dict.fromkeys(names, False))

    def repairs(_engine: Engine, reference: Reference, text: str) -> list[Repair]:
        flagged = any(token["content"] in text and any(token.get(n) for n in names) for token in reference.added)
        return [Repair(change=change, key=names)] if flagged else []

    return repairs


def _space_prefix(engine: Engine, reference: Reference, _text: str) -> list[Repair]:
    if not engine.add_space_prefix or reference.document is None:
        return []
    steps = pretokenizers(reference.document.get("pre_tokenizer"), _NOWHERE)
    schemes = {step.get("prepend_scheme") for step in steps}
    if engine.model == "llama" and schemes & {"first", "always"}:
        return [Repair(change=_prepending_to_all, key="prepending to all")]
    if engine.model == "t5" and "first" in schemes:
        return [Repair(change=_always_prepending, key="always prepending")]
    return []


def _prepending_to_all(document: dict[str, Any]) -> None:
    """Put a blank before every piece of text between special tokens, even where one stands there."""
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, escape]}
    document["pre_tokenizer"] = None


def _always_prepending(document: dict[str, Any]) -> None:
    for step in pretokenizers(document["pre_tokenizer"], _NOWHERE):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "always"


def _names_of_bytes(engine: Engine, _reference: Reference, text: str) -> list[Repair]:
    """Leave out names of bytes: for the reference they are pieces like others, and found in a text."""
    return _other_text(text, re.sub(r"<0x[0-9A-F]{2}>", "", text)) if engine.model == "t5" else []


def _same_score(engine: Engine, ours: list[int], theirs: list[int]) -> bool:
    if engine.model != "t5":
        return False
    texts = ["".join(engine.tokens[i] for i in ids) for ids in (ours, theirs)]
    sums = [sum(engine.scores[i] for i in ids) for ids in (ours, theirs)]
    return texts[0] == texts[1] and abs(sums[0] - sums[1]) <= 1e-4 * max(1.0, abs(sums[0]))


def _unknown_for_bytes(engine: Engine, ours: list[int], theirs: list[int]) -> bool:
    if engine.model != "t5" or engine.unknown is None:
        return False
    return list(_with_unknown(engine, ours)) == list(_with_unknown(engine, theirs))


def _with_unknown(engine: Engine, ids: list[int]) -> Iterator[int]:
    """Put one unknown token in the place of each run of bytes or unknown tokens."""
    last = None
    for i in ids:
        now = engine.unknown if engine.types[engine.tokens[i]] == TokenType.BYTE else i
        if now is not None and not (now == engine.unknown == last):
            yield now
        last = now


LIMITS = (
    Limit("nfc", "llama.cpp has no NFC normalizer", _nfc),
    Limit("promoted_special", "llama.cpp takes a plain token for a control token by its text", _promoted),
    Limit("mark_class", "llama.cpp's rule leaves out combining marks and knows the case of ASCII letters only", _marks),
    Limit("long_s", "llama.cpp's contractions know ASCII letters only", _long_s),
    Limit(
        "tiny_aya",
        "llama.cpp's rule loses the case of letters, and cuts some numbers otherwise",
        _tiny_aya,
    ),
    Limit("literal_space_symbol", "llama.cpp takes U+2581 in a text for a blank", _blank_symbol),
    Limit("space_run_user_defined", "llama.cpp cuts runs of blanks out first where they are added tokens", _blank_runs),
    Limit("space_prefix", "llama.cpp puts a blank before blanks, too, and after each special token", _space_prefix),
    Limit("strip", "llama.cpp keeps blanks beside added tokens that strip them", _flag("lstrip", "rstrip")),
    Limit("single_word", "llama.cpp finds added tokens inside words, too", _flag("single_word")),
    Limit("wordpiece", "llama.cpp drops vowel signs, cuts very long words, and knows other blanks", _wordpiece),
    Limit("charsmap", "llama.cpp applies the character map by longest match, and knows other blanks", _charsmap),
    Limit("unigram_no_byte_fallback", "llama.cpp's unigram has no byte fallback", _names_of_bytes, _unknown_for_bytes),
    Limit("unigram_tie", "llama.cpp chooses another of two best ways to cut", equal=_same_score),
)
