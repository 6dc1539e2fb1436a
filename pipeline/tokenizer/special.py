"""Special tokens: which ids begin and end a text, and whether the tokenizer adds them itself.

Follows `SpecialVocab` of gguf-py (vocab.py), with three additions: add_bos_token and add_eos_token are always said,
never true without an id (llama.cpp would stop the whole process), and for tokenizer classes that build their
post-processor from tokenizer_config.json that file's word counts, as it does in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError
from pipeline.strict_json import expect, optional, short
from pipeline.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

# Kinds in the order of the official converter, with their GGUF keys (the misspelt one is the format's own).
KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_FROM_CONFIG = ("bos", "eos", "unk", "sep", "pad", "mask")

# Families whose files do not name all the special tokens the engine needs, by config.json's model_type.  The official
# converter writes fixed ids for Gemma (eot 107); the text is right for any vocabulary.
_FAMILIES = {
    "gemma": (("eot", "<end_of_turn>"),),
    "glm": (("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
    "chatglm": (("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
    "glm4": (("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")),
    "glm4_moe": (("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")),
}

# Code Llama's tokens for filling in a middle.  llama.cpp finds the first three by their texts, but not the last, which
# ends the answer; the official converter writes it as id 32010 wherever vocab_size is 32016.
_FILL_IN = ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>")

# Classes of transformers whose post-processor is made from add_bos_token and add_eos_token: up to version 4.57 their
# __init__ ends with update_post_processor(), whatever tokenizer.json says, and that is how models of these classes were
# trained and published (DeepSeek: LlamaTokenizerFast, add_bos_token true, a post_processor that adds nothing).
# Version 5 drops both flags where there is a tokenizer.json (`_from_pretrained`) and saves neither: a checkpoint that
# still has them was made before it.  All other classes never looked at them beside a post_processor.
_REBUILDING = frozenset(
    f"{name}Tokenizer{fast}" for name in ("Llama", "CodeLlama", "Gemma", "Cohere", "GPTNeoX") for fast in ("", "Fast")
)

# Tokens that llama.cpp takes for granted, by the GGUF tokenizer model: it would end the process, or take another's id.
_REQUIRED = {"bert": ("bos", "sep", "unk"), "t5": ("unk",)}
_FROM_CONFIG_NAMES = {"bos": "cls_token", "sep": "sep_token", "unk": "unk_token"}


@dataclass(frozen=True)
class Special:
    """Special ids by kind ("bos", "eos" ...) in GGUF's order; the add_*_token flags in the order they were found."""

    ids: dict[str, int]
    adds: dict[str, bool]
    notes: tuple[str, ...] = ()


@dataclass
class _Finding:
    """What is known so far, while the files are read one after another."""

    texts: dict[str, str | None]
    adds: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_special(
    folder: Path,
    vocabulary: Vocabulary,
    post_processor: Any,
    tokenizer_config: dict[str, Any],
    configs: list[dict[str, Any]],
) -> Special:
    """Find the special tokens of a checkpoint.

    *post_processor* is tokenizer.json's (None without that file), *configs* are config.json's objects, the outer first.

    Raises:
        FormatError: if a file is not what it claims, or a token is unknown that llama.cpp cannot work without.
    """
    path = folder / "tokenizer_config.json"
    finding = _Finding({kind: token_text(tokenizer_config, kind, path) for kind in (*_FROM_CONFIG, "cls")})
    finding.texts["bos"] = finding.texts["bos"] or finding.texts["cls"]
    finding.texts["eos"] = finding.texts["eos"] or finding.texts["sep"]
    for processor in _processors(post_processor, folder / "tokenizer.json"):
        _apply_processor(finding, processor, folder / "tokenizer.json")
    _apply_flags(finding, tokenizer_config, path)
    model_type = next((c["model_type"] for c in reversed(configs) if isinstance(c.get("model_type"), str)), "")
    ids = _find_ids(finding, vocabulary, configs, model_type)
    _require(vocabulary, ids, folder)
    _complete_flags(finding, ids, vocabulary, post_processor)
    return Special({kind: ids[kind] for kind in KEYS if kind in ids}, finding.adds, tuple(finding.notes))


def token_text(tokenizer_config: dict[str, Any], kind: str, path: Path) -> str | None:
    """Give the text of {kind}_token in tokenizer_config.json: a string, an object with "content", or null.

    Raises:
        FormatError: if it is something else.
    """
    entry = tokenizer_config.get(f"{kind}_token")
    if isinstance(entry, dict):
        entry = entry.get("content")
    return None if entry is None else expect(entry, str, path, f"{kind}_token")


def _processors(node: Any, path: Path) -> list[dict[str, Any]]:
    if node is None:
        return []
    table = expect(node, dict, path, "post_processor")
    if table.get("type") != "Sequence":
        return [table]
    children = expect(table.get("processors"), list, path, "post_processor.processors")
    return [processor for child in children for processor in _processors(child, path)]


def _apply_processor(finding: _Finding, processor: dict[str, Any], path: Path) -> None:
    kind = expect(processor.get("type"), str, path, "post_processor.type")
    if kind == "ByteLevel":
        finding.adds.setdefault("bos", False)
        finding.adds.setdefault("eos", False)
    elif kind in ("RobertaProcessing", "BertProcessing"):
        _apply_pair(finding, processor, path)
        finding.adds["sep"] = kind == "RobertaProcessing"  # two between two texts; BERT has one, as after any text
    elif kind == "TemplateProcessing":
        _apply_template(finding, processor, path)
    else:
        raise FormatError("post_processor is unknown", where=path, found=kind)


def _apply_pair(finding: _Finding, processor: dict[str, Any], path: Path) -> None:
    for kind, key, fallback in (("cls", "cls", "bos"), ("sep", "sep", "eos")):
        entry = expect(processor.get(key), list, path, f"post_processor.{key}")
        text = expect(entry[0] if entry else None, str, path, f"post_processor.{key}[0]")
        finding.texts[kind] = finding.texts[kind] or text
        finding.texts[fallback] = finding.texts[fallback] or text
    finding.adds.update(bos=True, eos=True)


def _apply_template(finding: _Finding, processor: dict[str, Any], path: Path) -> None:
    """Read a TemplateProcessing: llama.cpp can put one token before the text and one after it."""
    before, after = _around(_template(processor, "single", path))
    if len(before) > 1 or len(after) > 1:
        finding.adds.update(bos=False, eos=False)
        finding.notes.append(
            f"the tokenizer puts {' '.join([*before, '...', *after])} around every text, llama.cpp at most one token "
            "before and one after: it will add none"
        )
        return
    if before:
        _apply_first(finding, before[0])
    if after:
        _apply_last(finding, after[0])
    _apply_separator(finding, _template(processor, "pair", path), before, after)


def _template(processor: dict[str, Any], key: str, path: Path) -> list[str | None]:
    """List the entries of a template: the text of a special token, None for a sequence."""
    entries = optional(processor, key, list, path, "TemplateProcessing") or []
    found: list[str | None] = []
    for index, entry in enumerate(entries):
        table = expect(entry, dict, path, f"{key}[{index}]")
        if "SpecialToken" in table:
            token = expect(table["SpecialToken"], dict, path, f"{key}[{index}].SpecialToken")
            found.append(expect(token.get("id"), str, path, f"{key}[{index}].SpecialToken.id"))
        else:
            expect(table.get("Sequence"), dict, path, f"{key}[{index}].Sequence")
            found.append(None)
    return found


def _around(template: list[str | None]) -> tuple[list[str], list[str]]:
    if None not in template:
        return [], []
    at = template.index(None)
    return [t for t in template[:at] if t is not None], [t for t in template[at + 1 :] if t is not None]


def _apply_first(finding: _Finding, first: str) -> None:
    texts = finding.texts
    if first not in (texts["bos"], texts["cls"]):
        texts["bos"], texts["cls"] = texts["bos"] or first, texts["cls"] or first
    finding.adds["bos"] = first in (texts["bos"], texts["cls"])
    if texts["bos"] != first:
        finding.notes.append(f"the tokenizer puts {first} before every text, but its bos_token is {texts['bos']}")
        finding.adds["bos"] = False


def _apply_last(finding: _Finding, last: str) -> None:
    """Take the token after the text as the end; what was called so before ends a turn."""
    texts = finding.texts
    if last != texts["eos"]:
        if texts["eos"]:
            texts["eot" if "eot" not in texts else "eom"] = texts["eos"]
        texts["eos"] = last
    finding.adds["eos"] = True


def _apply_separator(finding: _Finding, pair: list[str | None], before: list[str], after: list[str]) -> None:
    """Decide whether two texts are joined by a separator (llama.cpp asks for it when it ranks pairs)."""
    if pair.count(None) != 2:
        return
    first, second = [index for index, entry in enumerate(pair) if entry is None]
    if pair[:first] != before or pair[second + 1 :] != after:
        return
    middle = pair[first + 1 : second]
    if not middle:
        return
    ends = (finding.texts["sep"], finding.texts["eos"])
    adds = (middle[0] in ends and not after) or (len(middle) == 2 and middle[1] in ends)
    finding.adds["sep"] = adds
    if adds:
        finding.texts["sep"] = finding.texts["sep"] or finding.texts["eos"]


def _apply_flags(finding: _Finding, tokenizer_config: dict[str, Any], path: Path) -> None:
    rebuilds = optional(tokenizer_config, "tokenizer_class", str, path, "") in _REBUILDING
    for kind in ("bos", "eos", "sep"):
        flag = optional(tokenizer_config, f"add_{kind}_token", bool, path, "")
        if flag is None:
            continue
        if kind not in finding.adds:
            finding.adds[kind] = flag
        elif finding.adds[kind] != flag:
            winner = "tokenizer_config.json" if rebuilds else "tokenizer.json"
            finding.notes.append(
                f"add_{kind}_token is {str(flag).lower()} in tokenizer_config.json, but the post_processor of "
                f"tokenizer.json says otherwise: {winner} counts for this tokenizer class"
            )
            finding.adds[kind] = flag if rebuilds else finding.adds[kind]


def _find_ids(
    finding: _Finding, vocabulary: Vocabulary, configs: list[dict[str, Any]], model_type: str
) -> dict[str, int]:
    """Look the texts up; then config.json, the family and the vocabulary file fill what is missing."""
    ids: dict[str, int] = {}
    by_text = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    wanted = [(kind, text) for kind, text in finding.texts.items() if kind in KEYS and text is not None]
    for kind, text in wanted:
        if text in by_text:
            ids[kind] = by_text[text]
        else:
            finding.notes.append(f"{kind}_token {text!r} of tokenizer_config.json is not in the vocabulary")
    for config in configs:
        for kind in _FROM_CONFIG:
            token_id = config.get(f"{kind}_token_id")
            if kind not in ids and isinstance(token_id, int) and not isinstance(token_id, bool):
                _take_id(finding, ids, kind, token_id, len(vocabulary.tokens))
    for kind, text in _by_family(by_text, model_type):
        ids.setdefault(kind, by_text[text])
    return {**vocabulary.ids, **ids}


def _by_family(by_text: dict[str, int], model_type: str) -> list[tuple[str, str]]:
    """List kinds and texts that only the family of the model tells."""
    found = [(kind, text) for kind, text in _FAMILIES.get(model_type, ()) if text in by_text]
    return [*found, ("eot", _FILL_IN[-1])] if all(text in by_text for text in _FILL_IN) else found


def _take_id(finding: _Finding, ids: dict[str, int], kind: str, token_id: int, n_tokens: int) -> None:
    if 0 <= token_id < n_tokens:
        ids[kind] = token_id
    elif token_id != -1:  # -1 is how some say "none"
        finding.notes.append(
            f"{kind}_token_id {token_id} of config.json is outside the vocabulary of {n_tokens}: left out"
        )


def _complete_flags(finding: _Finding, ids: dict[str, int], vocabulary: Vocabulary, post_processor: Any) -> None:
    """Say both flags, and drop those without an id: llama.cpp ends the process over a token that it does not know."""
    finding.adds.setdefault("bos", "bos" in vocabulary.ids and post_processor is None)
    finding.adds.setdefault("eos", False)
    for kind, adds in finding.adds.items():
        if adds and kind not in ids:
            finding.adds[kind] = False
            finding.notes.append(f"add_{kind}_token is true, but no {kind} token is known: llama.cpp will add none")


def _require(vocabulary: Vocabulary, ids: dict[str, int], folder: Path) -> None:
    """Refuse a WordPiece or unigram vocabulary without the tokens that llama.cpp puts in unasked."""
    missing = [kind for kind in _REQUIRED.get(vocabulary.model, ()) if kind not in ids]
    if missing:
        raise FormatError(
            f"the tokenizer's {' and '.join(missing)} token is unknown",
            where=folder,
            expected=", ".join(_FROM_CONFIG_NAMES[kind] for kind in missing) + " in tokenizer_config.json",
        )


def read_eos_ids(generation_config: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Give generation_config.json's eos_token_id as a tuple: it is an integer, a list of them, or null.

    Raises:
        FormatError: if it is something else.
    """
    entry = generation_config.get("eos_token_id")
    entries = entry if isinstance(entry, list) else [] if entry is None else [entry]
    for token_id in entries:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < MAX_TOKENS:
            raise FormatError(
                "eos_token_id is no token id", where=path, expected="an integer or a list", found=short(entry)
            )
    return tuple(entries)
