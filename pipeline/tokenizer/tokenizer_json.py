"""tokenizer.json as data: the vocabulary, the merges and the added tokens, each checked to be what it claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import expect, optional, read_object, short
from pipeline.tokenizer.pretokenizers import normalizers
from pipeline.tokenizer.vocabulary import BLANK, MAX_TOKENS, AddedToken

BYTE_LEVEL = "byte-level BPE"
SENTENCEPIECE = "SentencePiece BPE"
UNIGRAM = "SentencePiece unigram"
WORDPIECE = "WordPiece"

_KINDS = {"Unigram": UNIGRAM, "WordPiece": WORDPIECE}
MAX_SCORE = 1e30  # scores are logarithms of probabilities; llama.cpp adds them up
CONTINUING = "##"  # what WordPiece writes before a piece that goes on with a word


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer.json.

    *family* is BYTE_LEVEL, SENTENCEPIECE, UNIGRAM or WORDPIECE; *vocab* maps text to id.  *merges* are the pairs of a
    BPE in order, *scores* those of a unigram model by id.  *byte_fallback* tells whether a unigram model has bytes for
    unknown characters.  The pipeline steps stay as the file has them.
    """

    path: Path
    family: str
    vocab: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    added: tuple[AddedToken, ...]
    ignore_merges: bool
    unk: str | None
    normalizer: Any
    pre_tokenizer: Any
    post_processor: Any
    scores: tuple[float, ...] = ()
    byte_fallback: bool = False


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read and check tokenizer.json.

    Raises:
        FormatError: if it is not what it claims.
        UnsupportedError: if its model is none that llama.cpp can run from here.
    """
    return parse_document(read_object(path), path)


def parse_document(document: dict[str, Any], path: Path) -> TokenizerJson:
    """Check the content of a tokenizer.json; *path* is named in errors, which are those of `read_tokenizer_json`."""
    model = expect(document.get("model"), dict, path, "model")
    family = _family(document, model, path)
    scores: tuple[float, ...] = ()
    unk: str | None
    if family == UNIGRAM:
        vocab, scores = _read_scored(model, path)
        unk = _unknown_piece(model, vocab, path)
    else:
        vocab = _read_vocab(model, path)
        unk = optional(model, "unk_token", str, path, "model")
    return TokenizerJson(
        path=path,
        family=family,
        vocab=vocab,
        merges=_read_merges(model, vocab, path) if family in (BYTE_LEVEL, SENTENCEPIECE) else (),
        added=_read_added(document, vocab, path),
        ignore_merges=bool(optional(model, "ignore_merges", bool, path, "model")),
        unk=unk,
        normalizer=document.get("normalizer"),
        pre_tokenizer=document.get("pre_tokenizer"),
        post_processor=document.get("post_processor"),
        scores=scores,
        byte_fallback=bool(optional(model, "byte_fallback", bool, path, "model")),
    )


def _family(document: dict[str, Any], model: dict[str, Any], path: Path) -> str:
    """Decide what kind of tokenizer this is."""
    kind = _kind(model)
    if kind in _KINDS:
        _refuse_prefix(model, path)
        return _KINDS[kind]
    if kind != "BPE":
        raise UnsupportedError(
            "tokenizer model is not supported",
            where=path,
            expected="BPE, Unigram or WordPiece",
            found=short(kind),
            hint="llama.cpp has no word-level tokenizer" if kind == "WordLevel" else None,
        )
    _refuse_variants(model, path)
    if model.get("byte_fallback") and _writes_blanks(document, path):
        return SENTENCEPIECE
    if _has_byte_level(document.get("pre_tokenizer")) or _has_byte_level(document.get("decoder")):
        return BYTE_LEVEL
    raise UnsupportedError(
        "BPE is neither byte-level nor SentencePiece's",
        where=path,
        expected="a ByteLevel step, or byte_fallback with spaces written as U+2581",
        found=f"pre_tokenizer {short(document.get('pre_tokenizer'))}, decoder {short(document.get('decoder'))}",
    )


def _kind(model: dict[str, Any]) -> str | None:
    """Give the type of the model; old writers left it out."""
    if "type" in model:
        kind = model["type"]
        return kind if isinstance(kind, str) else repr(kind)
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else None


def _refuse_prefix(model: dict[str, Any], path: Path) -> None:
    prefix = model.get("continuing_subword_prefix", CONTINUING)
    if prefix != CONTINUING:
        raise UnsupportedError(
            "WordPiece marks the pieces inside a word in an unknown way",
            where=path,
            expected=CONTINUING,
            found=short(prefix),
        )


def _refuse_variants(model: dict[str, Any], path: Path) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UnsupportedError(f"BPE with {key}: llama.cpp has none", where=path, found=short(model[key]))


def _writes_blanks(document: dict[str, Any], path: Path) -> bool:
    steps = normalizers(document.get("normalizer"), path)
    if any(step["type"] == "Replace" and step.get("content") == BLANK for step in steps):
        return True
    pre_tokenizer = document.get("pre_tokenizer")
    return isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace"


def _has_byte_level(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    children = node.get("pretokenizers") or node.get("decoders")
    return node.get("type") == "ByteLevel" or (
        isinstance(children, list) and any(_has_byte_level(child) for child in children)
    )


def _read_vocab(model: dict[str, Any], path: Path) -> dict[str, int]:
    vocab = expect(model.get("vocab"), dict, path, "model.vocab")
    if not vocab:
        raise FormatError("model.vocab is empty", where=path)
    owner: dict[int, str] = {}
    for text, token_id in vocab.items():
        check_id(token_id, f"model.vocab[{short(text)}]", path)
        if owner.setdefault(token_id, text) is not text:
            raise FormatError(
                f"id {token_id} is there twice",
                where=f"{path}: model.vocab",
                found=f"{short(owner[token_id])}, {short(text)}",
            )
    return vocab


def _read_scored(model: dict[str, Any], path: Path) -> tuple[dict[str, int], tuple[float, ...]]:
    """Read the vocabulary of a unigram model: a list of [text, score]."""
    entries = expect(model.get("vocab"), list, path, "model.vocab")
    if not 0 < len(entries) <= MAX_TOKENS:
        raise FormatError("model.vocab", where=path, expected=f"1 to {MAX_TOKENS} pieces", found=len(entries))
    vocab: dict[str, int] = {}
    scores: list[float] = []
    for index, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise FormatError(f"model.vocab[{index}] is no [text, score]", where=path, found=short(entry))
        text, score = entry
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= MAX_SCORE:
            raise FormatError(f"model.vocab[{index}] has no score", where=path, found=short(score))
        if vocab.setdefault(text, index) != index:
            raise FormatError(
                "two pieces have the same text", where=path, found=f"{short(text)}, ids {vocab[text]} and {index}"
            )
        scores.append(float(score))
    return vocab, tuple(scores)


def _unknown_piece(model: dict[str, Any], vocab: dict[str, int], path: Path) -> str:
    unk_id = expect(model.get("unk_id"), int, path, "model.unk_id")
    if not 0 <= unk_id < len(vocab):
        raise FormatError(
            "model.unk_id is no piece", where=path, expected=f"0 to {len(vocab) - 1}", found=short(unk_id)
        )
    return list(vocab)[unk_id]


def check_id(token_id: object, place: str, path: Path) -> int:
    """Return *token_id* if it can be one.

    Raises:
        FormatError: if it is no integer, negative or larger than any vocabulary.
    """
    number = expect(token_id, int, path, place)
    if not 0 <= number < MAX_TOKENS:
        raise FormatError(f"{place} is no token id", where=path, expected=f"0 to {MAX_TOKENS - 1}", found=short(number))
    return number


def _read_merges(model: dict[str, Any], vocab: dict[str, int], path: Path) -> tuple[tuple[str, str], ...]:
    merges: dict[tuple[str, str], int] = {}
    for index, pair in enumerate(_pairs(model, path)):
        left, right = pair
        for piece in (left, right, left + right):
            if piece not in vocab:
                raise FormatError(
                    f"model.merges[{index}] needs a piece that model.vocab lacks", where=path, found=short(piece)
                )
        if merges.setdefault(pair, index) != index:
            raise FormatError(
                f"model.merges[{index}] repeats model.merges[{merges[pair]}]", where=path, found=short(pair)
            )
    return tuple(merges)


def _pairs(model: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """Give the merges, which are "left right" in old files and ["left", "right"] in new ones."""
    for index, entry in enumerate(expect(model.get("merges"), list, path, "model.merges")):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise FormatError(
                f"model.merges[{index}] is no pair",
                where=path,
                expected='"left right" or two strings',
                found=short(entry),
            )
        if " " in parts[0] or " " in parts[1]:
            raise UnsupportedError(
                f"model.merges[{index}] merges a blank, which GGUF cannot write", where=path, found=short(entry)
            )
        yield parts[0], parts[1]


def _read_added(document: dict[str, Any], vocab: dict[str, int], path: Path) -> tuple[AddedToken, ...]:
    """Read added_tokens, each with the id that the tokenizers library gives it.

    That library takes the id of the vocabulary, or else the next free number by count, whatever "id" says; a file
    where the two differ means something else to every reader, so it is refused.
    """
    table = document.get("added_tokens")
    added: dict[str, AddedToken] = {}
    ids: dict[int, str] = {}
    for index, entry in enumerate([] if table is None else expect(table, list, path, "added_tokens")):
        token = read_added_token(entry, f"added_tokens[{index}]", path)
        wanted = vocab.get(token.content)
        if wanted is None:
            highest = max(ids, default=-1)
            wanted = highest + 1 if highest >= len(vocab) else len(vocab)
        if token.content in added or token.id in ids:
            raise FormatError(f"added_tokens[{index}] is there twice", where=path, found=short(token))
        if token.id != wanted:
            raise FormatError(
                f"id of added token {short(token.content)} clashes",
                where=f"{path}: added_tokens[{index}]",
                expected=f"{wanted}, by the vocabulary or by count",
                found=token.id,
                hint="save the tokenizer again with transformers",
            )
        added[token.content] = token
        ids[token.id] = token.content
    _refuse_taken(ids, vocab, path)
    return tuple(added.values())


def read_added_token(entry: object, place: str, path: Path, token_id: object = None) -> AddedToken:
    """Read one entry of added_tokens; *token_id* is given where the id stands elsewhere.

    Raises:
        FormatError: if it is none.
    """
    table = expect(entry, dict, path, place)
    content = expect(table.get("content"), str, path, f"{place}.content")
    flags = {
        key: bool(optional(table, key, bool, path, place)) for key in ("special", "normalized", "lstrip", "rstrip")
    }
    return AddedToken(
        id=check_id(table.get("id") if token_id is None else token_id, f"{place}.id", path),
        content=content,
        special=flags["special"],
        normalized=flags["normalized"],
        strips=flags["lstrip"] or flags["rstrip"],
    )


def read_decoder(tokenizer_config: dict[str, Any], path: Path) -> list[AddedToken]:
    """Read added_tokens_decoder of tokenizer_config.json at *path*: added tokens by their ids.

    Raises:
        FormatError: if it is not what it claims.
    """
    tokens = []
    for key, entry in (optional(tokenizer_config, "added_tokens_decoder", dict, path, "") or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise FormatError("added_tokens_decoder has a key that is no id", where=path, found=short(key))
        tokens.append(read_added_token(entry, f"added_tokens_decoder.{key}", path, int(key)))
    return tokens


def _refuse_taken(ids: dict[int, str], vocab: dict[str, int], path: Path) -> None:
    for text, token_id in vocab.items():
        if ids.get(token_id, text) != text:
            raise FormatError(
                f"id {token_id} is taken twice",
                where=f"{path}: added_tokens",
                found=f"{short(ids[token_id])}, and {short(text)} of model.vocab",
            )
