"""SentencePiece BPE from tokenizer.json: its space prefix, and its vocabulary where there is no tokenizer.model."""

from __future__ import annotations

from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.strict_json import optional, short
from pipeline.tokenizer.bpe import strip_notes
from pipeline.tokenizer.pretokenizers import normalizers, pretokenizers
from pipeline.tokenizer.sentencepiece import ADDED_SCORE
from pipeline.tokenizer.sentencepiece_model import require_bytes
from pipeline.tokenizer.tokenizer_json import SENTENCEPIECE, TokenizerJson
from pipeline.tokenizer.vocabulary import (
    BLANK,
    AddedToken,
    Slots,
    TokenType,
    Vocabulary,
    added_text,
    added_type,
    fit,
    is_byte,
)

# Gemma 4 has a tokenizer model of its own in llama.cpp: SentencePiece's text with the merges of BPE.
_WITH_MERGES = frozenset({"gemma4", "gemma4_text"})
# Control tokens that llama.cpp must print, so that its parser of Gemma 4's answers sees them.
_VISIBLE = frozenset(
    {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
)


def space_prefix(source: TokenizerJson) -> bool:
    """Tell whether the tokenizer puts a space before the text, after checking that it does nothing else to it.

    Raises:
        UnsupportedError: if the normalizer or the pre_tokenizer does something that llama.cpp does not.
    """
    prefix = False
    for step in normalizers(source.normalizer, source.path):
        if step["type"] == "Prepend" and step.get("prepend") == BLANK:
            prefix = True
        elif not _is_blank_replacement(step):
            raise UnsupportedError(
                "llama.cpp cannot normalize text as this tokenizer does",
                where=source.path,
                expected="only spaces written as U+2581",
                found=short(step),
            )
    return _metaspace_prefix(source) or prefix


def prefix_notes(source: TokenizerJson) -> tuple[str, ...]:
    """Say where llama.cpp puts more blanks: it puts one before every piece of text between special tokens."""
    steps = pretokenizers(source.pre_tokenizer, source.path)
    if not any(step.get("prepend_scheme") == "first" for step in steps):
        return ()
    return ("llama.cpp puts a blank after each special token, too, this tokenizer only before the text",)


def json_vocabulary(source: TokenizerJson, n_rows: int | None, model_type: str | None) -> Vocabulary:
    """Make the vocabulary of a SentencePiece BPE that has no tokenizer.model.

    The score of a piece is minus the position of the first merge that makes it, which is the order that SentencePiece
    has; what no merge makes comes after all of them.

    Raises:
        UnsupportedError: if it has no byte fallback.
        FormatError: if it has more tokens than *n_rows*.
    """
    with_merges = model_type in _WITH_MERGES
    n_tokens, added, left_out = fit(max(source.vocab.values()) + 1, source.added, n_rows, source.path)
    slots = Slots({token_id: text for text, token_id in source.vocab.items()}, {})
    slots.types = {token_id: _piece_type(text, source) for token_id, text in slots.texts.items()}
    for token in added:
        slots.put(token.id, *_added(token, source, with_merges))
    require_bytes(set(slots.texts.values()), source.path)
    tokens, types = slots.fill(n_tokens, source.path)
    return Vocabulary(
        kind=SENTENCEPIECE,
        model="gemma4" if with_merges else "llama",
        pre="gemma4" if with_merges else "default",
        writes_pre=not with_merges,
        tokens=tokens,
        types=types,
        scores=(ADDED_SCORE,) * n_tokens if with_merges else _scores(tokens, source),
        merges=tuple(f"{left} {right}" for left, right in source.merges) if with_merges else None,
        notes=left_out + strip_notes(added),
    )


def _is_blank_replacement(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == BLANK


def _metaspace_prefix(source: TokenizerJson) -> bool:
    """Read the pre_tokenizer: none, an idle Split on spaces (none are left), or a Metaspace that does not split."""
    step = source.pre_tokenizer
    if step is None or (
        isinstance(step, dict) and step.get("type") == "Split" and step.get("pattern") == {"String": " "}
    ):
        return False
    is_metaspace = isinstance(step, dict) and step.get("type") == "Metaspace" and step.get("replacement") == BLANK
    if not is_metaspace or step.get("split") is not False:
        raise UnsupportedError(
            "pre_tokenizer is unknown for SentencePiece BPE",
            where=source.path,
            expected="none, or Metaspace with split false",
            found=short(step),
        )
    scheme = optional(step, "prepend_scheme", str, source.path, "Metaspace")
    if scheme is None:
        return optional(step, "add_prefix_space", bool, source.path, "Metaspace") is not False
    return scheme != "never"


def _piece_type(text: str, source: TokenizerJson) -> TokenType:
    if is_byte(text):
        return TokenType.BYTE
    return TokenType.UNKNOWN if text == source.unk else TokenType.NORMAL


def _added(token: AddedToken, source: TokenizerJson, with_merges: bool) -> tuple[str, TokenType]:
    """Give text and type of an added token.

    Runs of blanks stay normal pieces with U+2581, so that real blanks follow the merges as in the reference and are
    printed as blanks.  Typed user-defined they would be cut out before the merges (with real blanks), or be printed as
    U+2581 (with that).  What is lost is a run of U+2581 typed by the user: the reference cuts it out as one token.
    """
    if token.content == source.unk:
        return token.content, TokenType.CONTROL if with_merges else TokenType.UNKNOWN
    if not token.content.strip(BLANK):
        return token.content, TokenType.NORMAL
    if with_merges and token.content in _VISIBLE:
        return token.content, TokenType.USER_DEFINED
    return added_text(token), added_type(token)


def _scores(tokens: tuple[str, ...], source: TokenizerJson) -> tuple[float, ...]:
    first: dict[str, int] = {}
    for index, (left, right) in enumerate(source.merges):
        first.setdefault(left + right, index)
    last = len(source.merges)
    return tuple(-float(first.get(text, last)) for text in tokens)
