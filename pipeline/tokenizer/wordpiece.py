"""WordPiece, the tokenizer of BERT and its kin, as GGUF's tokenizer model "bert"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import MAX_JSON_BYTES, optional, read_text, short
from pipeline.tokenizer.pretokenizers import normalizers, pretokenizers
from pipeline.tokenizer.tokenizer_json import CONTINUING, WORDPIECE, TokenizerJson, read_decoder
from pipeline.tokenizer.vocabulary import (
    BLANK,
    MAX_TOKENS,
    AddedToken,
    Slots,
    TokenType,
    Vocabulary,
    added_type,
    fit,
    unused_name,
)
from pipeline.types import boolean

_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def wordpiece_vocabulary(source: TokenizerJson, n_rows: int | None) -> Vocabulary:
    """Make the vocabulary of a WordPiece tokenizer.

    llama.cpp wants the beginning of a word marked with U+2581 instead of the pieces inside it with "##".  Follows
    `BertModel.set_vocab` of llama.cpp's converter.

    Raises:
        FormatError: if the vocabulary has more pieces than *n_rows*.
        UnsupportedError: if llama.cpp cannot do what the tokenizer does to text.
    """
    lowercase, strip_accents = _normalizer(source)
    _check_pre_tokenizer(source)
    n_tokens, added, left_out = fit(max(source.vocab.values()) + 1, source.added, n_rows, source.path)
    slots = Slots({}, {})
    for text, token_id in source.vocab.items():
        is_unknown = text == source.unk
        slots.put(token_id, text if is_unknown else phantom(text), _type(is_unknown))
    for token in added:
        slots.put(token.id, token.content, added_type(token))
    tokens, types = slots.fill(n_tokens, source.path)
    options = [boolean("tokenizer.ggml.normalizer.lowercase", lowercase)]
    if strip_accents is not None:
        options.append(boolean("tokenizer.ggml.normalizer.strip_accents", strip_accents))
    note = "llama.cpp drops vowel signs of Hindi and Bengali and cuts very long words: such text is cut differently"
    return Vocabulary(
        kind=WORDPIECE,
        model="bert",
        pre="default",
        tokens=tokens,
        types=types,
        normalizer=tuple(options),
        notes=(note, *left_out),
    )


def phantom(text: str) -> str:
    """Mark the beginning of a word, where WordPiece marks what is inside."""
    return text.removeprefix(CONTINUING) if text.startswith(CONTINUING) and text != CONTINUING else BLANK + text


def read_vocab_txt(path: Path, tokenizer_config: dict[str, Any]) -> TokenizerJson:
    """Read vocab.txt, one piece a line, as the tokenizer.json that it stands for.

    Raises:
        FormatError: if it is none, or lacks a special token.
    """
    lines = read_text(path, MAX_JSON_BYTES).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not 0 < len(lines) <= MAX_TOKENS:
        raise FormatError("vocab.txt", where=path, expected=f"1 to {MAX_TOKENS} lines", found=len(lines))
    vocab = _numbered([line.removesuffix("\r") for line in lines])
    config = path.with_name("tokenizer_config.json")
    return TokenizerJson(
        path=path,
        family=WORDPIECE,
        vocab=vocab,
        merges=(),
        added=_added(vocab, tokenizer_config, path, config),
        ignore_merges=False,
        unk=_special_text(tokenizer_config, "unk", config),
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": _or_true(optional(tokenizer_config, "tokenize_chinese_chars", bool, config, "")),
            "strip_accents": optional(tokenizer_config, "strip_accents", bool, config, ""),
            "lowercase": _or_true(optional(tokenizer_config, "do_lower_case", bool, config, "")),
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={
            "type": "BertProcessing",
            "cls": [_special_text(tokenizer_config, "cls", config), 0],
            "sep": [_special_text(tokenizer_config, "sep", config), 0],
        },
    )


def special_defaults() -> dict[str, str]:
    """Give the special tokens that BERT's tokenizer has where tokenizer_config.json is silent."""
    return {f"{kind}_token": text for kind, text in _SPECIAL.items()}


def _numbered(lines: list[str]) -> dict[str, int]:
    """Number the pieces by line; of a repeated one the last counts, as in transformers, and the others are unused."""
    vocab = {text: token_id for token_id, text in enumerate(lines)}
    taken = set(vocab)
    for token_id, text in enumerate(lines):
        if vocab[text] != token_id:
            name = unused_name(token_id, taken)
            taken.add(name)
            vocab[name] = token_id
    return vocab


def _special_text(tokenizer_config: dict[str, Any], kind: str, path: Path) -> str:
    entry = tokenizer_config.get(f"{kind}_token")
    if isinstance(entry, dict):
        entry = entry.get("content")
    if entry is None:
        return _SPECIAL[kind]
    if isinstance(entry, str):
        return entry
    raise FormatError(f"{kind}_token has the wrong type", where=path, expected="text", found=short(entry))


def _added(vocab: dict[str, int], tokenizer_config: dict[str, Any], path: Path, config: Path) -> tuple[AddedToken, ...]:
    found: dict[int, AddedToken] = {}
    for kind in _SPECIAL:
        text = _special_text(tokenizer_config, kind, config)
        if text in vocab:
            found[vocab[text]] = AddedToken(vocab[text], text, special=True)
        elif kind in ("unk", "sep", "cls"):
            raise FormatError(f"vocab.txt lacks the {kind} token", where=path, expected=text)
    for token in read_decoder(tokenizer_config, config):
        found[token.id] = token
    return tuple(found.values())


def _or_true(flag: bool | None) -> bool:
    return flag is not False


def _type(is_unknown: bool) -> TokenType:
    return TokenType.UNKNOWN if is_unknown else TokenType.NORMAL


def _normalizer(source: TokenizerJson) -> tuple[bool, bool | None]:
    """Read whether text becomes lower case, and whether accents are stripped (None: with lower case)."""
    steps = normalizers(source.normalizer, source.path)
    is_bert = len(steps) == 1 and steps[0]["type"] == "BertNormalizer"
    if not is_bert or steps[0].get("clean_text") is False or steps[0].get("handle_chinese_chars") is False:
        raise UnsupportedError(
            "llama.cpp cannot normalize text as this WordPiece tokenizer does",
            where=source.path,
            expected="BertNormalizer with clean_text and handle_chinese_chars",
            found=short(source.normalizer),
        )
    lowercase = optional(steps[0], "lowercase", bool, source.path, "BertNormalizer")
    return lowercase is not False, optional(steps[0], "strip_accents", bool, source.path, "BertNormalizer")


def _check_pre_tokenizer(source: TokenizerJson) -> None:
    kinds = [step["type"] for step in pretokenizers(source.pre_tokenizer, source.path)]
    if kinds not in (["BertPreTokenizer"], ["WhitespaceSplit", "Punctuation"]):
        raise UnsupportedError(
            "pre_tokenizer is unknown for WordPiece",
            where=source.path,
            expected="BertPreTokenizer",
            found=short(source.pre_tokenizer),
        )
