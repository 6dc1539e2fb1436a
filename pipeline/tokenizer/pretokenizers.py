r"""Pre-tokenizers of byte-level BPE: which of llama.cpp's rules (tokenizer.ggml.pre) cuts like this tokenizer.json.

The rule is recognised by what the file's normalizer and pre_tokenizer say, brought to one form: a tuple of steps.
A new one is one row of ROWS: the name that llama.cpp knows, and the steps in that form.

    Split <regex>         matches are cut out as words of their own (\r \n \t written as escapes)
    Punctuation <how>     tokenizers' Punctuation step
    Digits runs           tokenizers' Digits step with individual_digits false
    ByteLevel             only where it is not the last step
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.strict_json import expect, optional, short

# Parts that many patterns share: contractions, letters, punctuation, white space.
_C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_L = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_P = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_W = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_P = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_C}|{_L}|\p{{N}}{{1,3}}|{_P}|{_W}"
QWEN2 = rf"{_C}|{_L}|\p{{N}}|{_P}|{_W}"
GPT4O = rf"{_CASED % (_C + '?', _C + '?')}|\p{{N}}{{1,3}}|{_CASED_P}|{_W}"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _W
)
_JAIS2_BLANKS = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_BLOOM_NESTED = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# Latin, Greek, Cyrillic, Armenian, Georgian ... letters that have case, as ranges of first and last code point.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_FULL_WIDTH = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

HOW_TO_ADD = "a new pre-tokenizer is one row in pipeline/tokenizer/pretokenizers.py, if llama.cpp has a rule for it"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

_MARKS = "llama.cpp's rule {} leaves out combining marks: Arabic vowels, Devanagari, Tamil, Thai are cut differently"


def split(*patterns: str) -> tuple[str, ...]:
    """Make Split steps of regular expressions."""
    return tuple(f"Split {pattern}" for pattern in patterns)


@dataclass(frozen=True)
class Row:
    """One rule of llama.cpp: its name in tokenizer.ggml.pre, and the steps it stands for.

    *ignore_merges* is whether llama.cpp looks words up whole before it merges, under this name (there is no key for
    it).  *covers* is whether the (only) pattern matches every character, so that "cut out what matches" and "drop what
    does not match" are the same.  *same* are names with the same rule.  *limit* is said aloud.
    """

    pre: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    covers: bool = False
    same: tuple[str, ...] = ()
    limit: str | None = None


ROWS = (
    Row("llama-bpe", split(LLAMA3), ignore_merges=True, covers=True, same=("falcon-h1", "lfm2", "pixtral", "glm4")),
    Row("dbrx", split(LLAMA3), covers=True, same=("smaug-bpe", "chatglm-bpe")),
    Row(
        "qwen2",
        split(QWEN2),
        covers=True,
        same=("stablelm2", "megrez", "hunyuan", "solar-open", "grok-2", "deepseek-r1-qwen"),
    ),
    Row(
        "qwen35",
        split(rf"{_C}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_W}"),
        covers=True,
    ),
    Row("gpt-4o", split(GPT4O), covers=True, same=("minimax-m2", "llama4"), limit=_MARKS.format("gpt-4o")),
    Row("granite-embed-multi-97m", split(GPT4O), ignore_merges=True, covers=True),
    Row(
        "tekken",
        split(rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_P}|{_W}"),
        ignore_merges=True,
        covers=True,
        limit=_MARKS.format("tekken"),
    ),
    Row("deepseek-v3", split(r"\p{N}{1,3}", _CJK, _DEEPSEEK3), same=("hunyuan-dense", "joyai-llm", "hy_v4")),
    Row("deepseek-coder", split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, r"\p{N}")),
    Row(
        "deepseek-llm",
        split(r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _FULL_WIDTH, r"\s+$", _CJK_HANGUL, r"\p{N}"),
    ),
    Row(
        "gpt-2",
        split(GPT2),
        covers=True,
        same=("mpt", "olmo", "jais", "exaone4", "phi-2", "modern-bert", "roberta-bpe"),
    ),
    Row(
        "starcoder",
        split(r"\p{N}", GPT2),
        same=("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    Row("falcon", ("Punctuation Contiguous", *split(GPT2), "Digits runs", *split("[0-9][0-9][0-9]"))),
    Row("bloom", split(_BLOOM_NESTED), same=("poro-chat", "gpt3-finnish")),
    Row("bloom", split(_BLOOM), same=("poro-chat", "gpt3-finnish")),
    Row("viking", split(_BLOOM_NESTED, r"\p{N}")),
    Row("viking", split(_BLOOM, r"\p{N}")),
    Row("minicpm5", split(r"\p{N}{1,3}", rf"{_C}|{_L}|\p{{N}}+|{_P}|{_W}"), ignore_merges=True),
    Row("jais-2", split(rf"{_C}|{_L}|\p{{N}}{{1,3}}|{_P}|\s*[\r\n]+|{_JAIS2_BLANKS}|\s{{1}}"), covers=True),
    Row("ufakzeka", split(rf"{_L}|\p{{N}}|{_P}|{_W}"), covers=True),
    Row(
        "exaone-moe",
        split(
            rf"{_C}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|"
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        covers=True,
    ),
    Row("bailingmoe", split(_BAILING), covers=True, same=("bailingmoe2", "llada-moe")),
    Row("seed-coder", split(rf"{_C}|{_L}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_W}"), covers=True),
    Row(
        "tiny_aya",
        split(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O),
        same=("cohere2moe",),
        limit="llama.cpp's rule tiny_aya cuts words of mixed case (camelCase) and some numbers differently",
    ),
)


@dataclass(frozen=True)
class Steps:
    """A pre_tokenizer in one form; *inverted* when a Split drops what does not match."""

    steps: tuple[str, ...]
    inverted: bool = False


def read_steps(pre_tokenizer: Any, path: Path) -> Steps:
    """Bring a pre_tokenizer to one form.

    Raises:
        UnsupportedError: for a step that has no place in byte-level BPE here.
        FormatError: if it is not what tokenizers writes.
    """
    steps: list[str] = []
    inverted = False
    for node in pretokenizers(pre_tokenizer, path):
        step, drops = _step(node, path)
        inverted = inverted or drops
        steps += step
    if not any(step == "ByteLevel" for step in steps):
        raise UnsupportedError("pre_tokenizer has no ByteLevel step", where=path, found=short(pre_tokenizer))
    return Steps(_without_idle_bytes(steps), inverted)


def write_steps(steps: tuple[str, ...]) -> dict[str, Any]:
    """Write steps in the one form as tokenizer.json would; Falcon's cut digits after the bytes are made."""
    nodes: list[dict[str, Any]] = []
    for step in steps:
        kind, rest = step.split(" ", 1)
        if kind == "Split":
            nodes.append({"type": "Split", "pattern": {"Regex": rest}, "behavior": "Isolated", "invert": False})
        elif kind == "Punctuation":
            nodes.append({"type": "Punctuation", "behavior": rest})
        else:
            nodes += [_BYTES, {"type": "Digits", "individual_digits": False}]
    return {"type": "Sequence", "pretokenizers": nodes if _BYTES in nodes else [*nodes, _BYTES]}


def canonical_regex(pattern: str) -> str:
    r"""Write a regular expression in one form: real line breaks and tabs as escapes, \p{N} without {1}."""
    for character, escape in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        pattern = pattern.replace(character, escape)
    return pattern.replace(r"\p{N}{1}", r"\p{N}")


def normalizers(normalizer: Any, path: Path) -> list[dict[str, Any]]:
    """List the steps of a normalizer, sequences taken apart.

    Raises:
        FormatError: if it is not what tokenizers writes.
    """
    return list(_flatten(normalizer, "normalizers", path, "normalizer"))


def pretokenizers(pre_tokenizer: Any, path: Path) -> list[dict[str, Any]]:
    """List the steps of a pre_tokenizer, sequences taken apart.

    Raises:
        FormatError: if it is not what tokenizers writes.
    """
    return list(_flatten(pre_tokenizer, "pretokenizers", path, "pre_tokenizer"))


def _flatten(node: Any, children: str, path: Path, place: str) -> Iterator[dict[str, Any]]:
    if node is None:
        return
    table = expect(node, dict, path, place)
    kind = expect(table.get("type"), str, path, f"{place}.type")
    if kind != "Sequence":
        yield table
        return
    for index, child in enumerate(expect(table.get(children), list, path, f"{place}.{children}")):
        yield from _flatten(expect(child, dict, path, f"{place}.{children}[{index}]"), children, path, place)


def _step(node: dict[str, Any], path: Path) -> tuple[list[str], bool]:
    kind = node["type"]
    if kind == "Split":
        return _split_step(node, path)
    if kind == "Digits":
        alone = optional(node, "individual_digits", bool, path, "Digits")
        return ([r"Split \p{N}"] if alone else ["Digits runs"]), False
    if kind == "Punctuation":
        return [f"Punctuation {optional(node, 'behavior', str, path, 'Punctuation') or 'Isolated'}"], False
    if kind == "ByteLevel":
        return _byte_level_step(node, path), False
    raise UnsupportedError(
        f"pre_tokenizer step {kind} is unknown for byte-level BPE", where=path, found=short(node), hint=HOW_TO_ADD
    )


def _split_step(node: dict[str, Any], path: Path) -> tuple[list[str], bool]:
    pattern = expect(node.get("pattern"), dict, path, "Split.pattern")
    text = optional(pattern, "String", str, path, "Split.pattern")
    regex = expect(pattern.get("Regex"), str, path, "Split.pattern.Regex") if text is None else re.escape(text)
    how = (node.get("behavior"), bool(optional(node, "invert", bool, path, "Split")))
    if how in (("Isolated", False), ("Isolated", True)):  # inverted, the same pieces are cut, only the roles swap
        return [f"Split {canonical_regex(regex)}"], False
    if how == ("Removed", True):
        return [f"Split {canonical_regex(regex)}"], True
    raise UnsupportedError(
        "pre_tokenizer splits in a way that llama.cpp does not",
        where=path,
        expected="Isolated, or Removed with invert",
        found=short(how),
    )


def _byte_level_step(node: dict[str, Any], path: Path) -> list[str]:
    if optional(node, "add_prefix_space", bool, path, "ByteLevel"):
        raise UnsupportedError(
            "the tokenizer puts a space before every text, which llama.cpp does not for byte-level BPE",
            where=path,
            expected="ByteLevel.add_prefix_space false",
            found="true",
        )
    use_regex = optional(node, "use_regex", bool, path, "ByteLevel")
    return ([] if use_regex is False else [f"Split {GPT2}"]) + ["ByteLevel"]


def _without_idle_bytes(steps: list[str]) -> tuple[str, ...]:
    """Drop ByteLevel where it stands last, and where only cuts follow that see the same in bytes (digits)."""
    last = len(steps) - 1 - steps[::-1].index("ByteLevel")
    rest = steps[last + 1 :]
    if all(step in {"Digits runs", "Split [0-9][0-9][0-9]"} for step in rest):
        return (*steps[:last], *rest)
    return tuple(steps)
