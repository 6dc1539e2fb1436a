"""What every kind of tokenizer is brought to: a list of tokens with types, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from pipeline.errors import FormatError
from pipeline.strict_json import short
from pipeline.types import KV

BLANK = "\u2581"  # SentencePiece writes a space as this character
# Larger than any vocabulary (the largest have about 900,000 tokens); keeps a bad id from filling the memory.
MAX_TOKENS = 1 << 21


class TokenType(IntEnum):
    """Types of a token (`enum llama_token_type` in llama.h)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class AddedToken:
    """An added token: *content* is matched in the raw text before the model sees it."""

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    strips: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one model, by id.

    *kind* is for people; *model* and *pre* are GGUF's names, *pre* is not written where *writes_pre* is false.
    *scores* (float32 values) belong to SentencePiece, *merges* ("left right") to BPE.  *add_space_prefix* is None
    where llama.cpp needs no such key.  *options* are further entries that follow the tokens, *normalizer* those that
    come last.  *ids* are special ids that the vocabulary file itself names ("bos", "eos" ...).
    """

    kind: str
    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    add_space_prefix: bool | None = None
    writes_pre: bool = True
    options: tuple[KV, ...] = ()
    normalizer: tuple[KV, ...] = ()
    ids: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_CONTROL_TEXTS = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_CONTROL_FORMS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def looks_special(text: str) -> bool:
    """Tell whether an added token is a control token by its looks.

    Some models (Command R, DeepSeek Coder, Gemma) do not mark all of them as special.  Follows
    `TextModel.does_token_look_special` of llama.cpp's converter.
    """
    return text in _CONTROL_TEXTS or any(text.startswith(a) and text.endswith(b) for a, b in _CONTROL_FORMS)


def added_type(token: AddedToken) -> TokenType:
    """Give the type of an added token."""
    return TokenType.CONTROL if token.special or looks_special(token.content) else TokenType.USER_DEFINED


def added_text(token: AddedToken) -> str:
    """Give the text to write for an added token: llama.cpp prints and matches user-defined ones as they stand."""
    return token.content if added_type(token) is TokenType.CONTROL else token.content.replace(BLANK, " ")


def is_byte(text: str) -> bool:
    """Tell whether *text* is a byte token of SentencePiece, such as <0x0A>."""
    return _BYTE.fullmatch(text) is not None


def unused_name(token_id: int, taken: set[str]) -> str:
    """Name the unused token *token_id*, other than all *taken* names (llama.cpp stops at a repeated one)."""
    name = f"[PAD{token_id}]"
    while name in taken:
        name += "_"
    return name


@dataclass
class Slots:
    """The tokens of a vocabulary in the making, by id; ids may be missing."""

    texts: dict[int, str]
    types: dict[int, TokenType]

    def put(self, token_id: int, text: str, kind: TokenType) -> None:
        """Set one token, over what was there."""
        self.texts[token_id], self.types[token_id] = text, kind

    def fill(self, n_tokens: int, path: Path) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
        """Give texts and types of *n_tokens* tokens; ids without a token become unused ones, [PADn].

        Raises:
            FormatError: if GGUF or llama.cpp cannot hold them; *path* is named.
        """
        taken = set(self.texts.values())
        tokens = tuple(self.texts[i] if i in self.texts else unused_name(i, taken) for i in range(n_tokens))
        check_texts(tokens, path)
        return tokens, tuple(self.types.get(i, TokenType.UNUSED) for i in range(n_tokens))


def fit(
    n_vocab: int, added: Sequence[AddedToken], n_rows: int | None, path: Path
) -> tuple[int, tuple[AddedToken, ...], tuple[str, ...]]:
    """Decide how many tokens to write, which added tokens are among them, and what to say about the others.

    *n_vocab* is the highest id of the vocabulary proper plus one, *n_rows* the rows of the embedding (None: not known).
    An added token without a row cannot be used by the model either: it is left out.

    Raises:
        FormatError: if the vocabulary proper has more tokens than the embedding has rows.
    """
    if n_rows is None:
        return max([n_vocab, *(token.id + 1 for token in added)]), tuple(added), ()
    if n_vocab > n_rows:
        raise FormatError(
            "tokenizer has more tokens than the model has rows for",
            where=path,
            expected=f"at most vocab_size {n_rows} of config.json",
            found=n_vocab,
            hint="config.json and the tokenizer are not of the same model",
        )
    beyond = [f"{token.content} ({token.id})" for token in added if token.id >= n_rows]
    notes = (f"added tokens beyond the embedding's {n_rows} rows are left out: {few(beyond)}",) if beyond else ()
    return n_rows, tuple(token for token in added if token.id < n_rows), notes


def few(names: Sequence[str], n: int = 5) -> str:
    """List at most *n* names."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def check_texts(tokens: Sequence[str], path: Path) -> None:
    """Refuse token lists that GGUF or llama.cpp cannot hold.

    Raises:
        FormatError: for a text that is not Unicode or holds NUL, and for two tokens of one text.
    """
    seen: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        if not text.isascii():
            _check_unicode(token_id, text, path)
        if "\0" in text:
            raise FormatError(f"token {token_id} holds a NUL character", where=path, found=short(text))
        if seen.setdefault(text, token_id) != token_id:
            raise FormatError(
                "two tokens have the same text", where=path, found=f"{short(text)} has ids {seen[text]} and {token_id}"
            )


def _check_unicode(token_id: int, text: str, path: Path) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"token {token_id} is not valid Unicode", where=path, found=short(text)) from error
