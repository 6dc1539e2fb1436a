"""SentencePiece BPE from tokenizer.model: pieces with scores, as GGUF's tokenizer model "llama"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import read_bytes, read_optional, short
from pipeline.tokenizer import _protobuf as wire
from pipeline.tokenizer.tokenizer_json import SENTENCEPIECE, TokenizerJson, check_id, read_decoder
from pipeline.tokenizer.vocabulary import (
    MAX_TOKENS,
    AddedToken,
    TokenType,
    Vocabulary,
    added_text,
    added_type,
    check_texts,
    is_byte,
    unused_name,
)

MAX_MODEL_BYTES = 64 << 20
ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0

_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
# sentencepiece_model.proto, enum Type.  User-defined pieces are normal ones here, as the official converter has it:
# the lists of added tokens say which ones are cut out of the text first.
_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.NORMAL,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}


@dataclass(frozen=True)
class Piece:
    """One piece of a SentencePiece model; *score* is float32."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True)
class SentencePieceModel:
    """What tokenizer.model says: the pieces by id, the special ids it names, whether a space goes before the text."""

    path: Path
    pieces: tuple[Piece, ...]
    ids: dict[str, int]
    add_space_prefix: bool


def read_model(path: Path) -> SentencePieceModel:
    """Read a SentencePiece BPE model (sentencepiece_model.proto).

    Raises:
        FormatError: if it is none.
        UnsupportedError: for unigram models, and for options that llama.cpp does not follow.
    """
    data = read_bytes(path, MAX_MODEL_BYTES)
    try:
        pieces, trainer, normalizer = _parse(data)
    except (ValueError, KeyError) as error:
        raise FormatError("file is no SentencePiece model", where=path, found=short(str(error))) from error
    if not 0 < len(pieces) <= MAX_TOKENS:
        raise FormatError(
            "file is no SentencePiece model", where=path, expected=f"1 to {MAX_TOKENS} pieces", found=len(pieces)
        )
    _refuse_options(trainer, normalizer, path)
    _check_pieces(pieces, path)
    names = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
    defaults = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    ids = {
        name: wire.as_int(trainer[number]) if number in trainer else defaults[name] for name, number in names.items()
    }
    return SentencePieceModel(
        path=path,
        pieces=tuple(pieces),
        ids={name: token_id for name, token_id in ids.items() if 0 <= token_id < len(pieces)},
        add_space_prefix=_flag(normalizer, 3),
    )


def sentencepiece_vocabulary(
    model: SentencePieceModel,
    source: TokenizerJson | None,
    folder: Path,
    tokenizer_config: dict[str, Any],
    vocab_size: int | None,
) -> Vocabulary:
    """Make the vocabulary of a SentencePiece model with the added tokens that lie beside it.

    Ids up to *vocab_size* become unused tokens [PADn].  Added tokens beyond it have no row in the embedding and are
    left out with a note.  Follows `TextModel._create_vocab_sentencepiece` of llama.cpp's converter.

    Raises:
        FormatError: if the model has more pieces than *vocab_size*, or tokenizer.json has other ones.
    """
    added = _added_tokens(folder, tokenizer_config, source)
    n_pieces = len(model.pieces)
    n_tokens = vocab_size if vocab_size is not None else max([n_pieces, *(token.id + 1 for token in added)])
    if n_pieces > n_tokens:
        raise FormatError(
            "tokenizer has more pieces than the model has rows for",
            where=model.path,
            expected=f"at most vocab_size {n_tokens} of config.json",
            found=n_pieces,
        )
    texts = {i: piece.text for i, piece in enumerate(model.pieces)}
    scores = {i: piece.score for i, piece in enumerate(model.pieces)}
    types = {i: piece.type for i, piece in enumerate(model.pieces)}
    fitting = [token for token in added if token.id < n_tokens]
    for token in fitting:
        texts[token.id], scores[token.id], types[token.id] = added_text(token), ADDED_SCORE, added_type(token)
    if source is not None:
        _check_agreement(model, source, {token.id for token in added})
    taken = set(texts.values())
    tokens = tuple(texts[i] if i in texts else unused_name(i, taken) for i in range(n_tokens))
    check_texts(tokens, model.path)
    return Vocabulary(
        kind=SENTENCEPIECE,
        model="llama",
        pre="default",
        tokens=tokens,
        types=tuple(types.get(i, TokenType.UNUSED) for i in range(n_tokens)),
        scores=tuple(scores.get(i, UNUSED_SCORE) for i in range(n_tokens)),
        ids=model.ids,
        notes=_left_out(added, n_tokens),
    )


def require_bytes(texts: set[str], path: Path) -> None:
    """Refuse a vocabulary without a token for each byte: llama.cpp has nothing else for unknown characters.

    As in llama.cpp's `token_byte`, an ASCII character that is itself a token stands for its byte (Gemma's tab).

    Raises:
        UnsupportedError: if one is missing.
    """
    names = [f"<0x{value:02X}>" for value in range(256)]
    missing = [
        name for value, name in enumerate(names) if name not in texts and (value > 127 or chr(value) not in texts)
    ]
    if missing:
        raise UnsupportedError(
            "SentencePiece model has no byte fallback, which llama.cpp needs",
            where=path,
            expected="tokens <0x00> to <0xFF>",
            found=f"{len(missing)} are missing, first {missing[0]}",
        )


Message = dict[int, wire.Value]


def _parse(data: bytes) -> tuple[list[Piece], Message, Message]:
    pieces: list[Piece] = []
    trainer: Message = {}
    normalizer: Message = {}
    for number, value in wire.fields(data):
        if number == 1:
            pieces.append(_piece(wire.as_bytes(value)))
        elif number == 2:
            trainer.update(wire.fields(wire.as_bytes(value)))
        elif number == 3:
            normalizer.update(wire.fields(wire.as_bytes(value)))
    return pieces, trainer, normalizer


def _piece(data: bytes) -> Piece:
    message = dict(wire.fields(data))
    return Piece(
        text=wire.as_bytes(message[1]).decode("utf-8"),
        score=wire.as_float(message.get(2, 0)),
        type=_TYPES[wire.as_int(message.get(3, 1))],
    )


def _flag(message: Message, number: int, default: bool = True) -> bool:
    value = message.get(number, int(default))
    return bool(value)


def _refuse_options(trainer: Message, normalizer: Message, path: Path) -> None:
    kind = _MODEL_TYPES.get(wire.as_int(trainer.get(3, 1)), "unknown")
    if kind != "BPE":
        raise UnsupportedError(
            f"SentencePiece {kind} models are not supported",
            where=path,
            expected="BPE",
            found=kind,
            hint="unigram belongs to T5-like models, which Ollama does not run",
        )
    options = (
        (bool(normalizer.get(2)), "a character map (precompiled_charsmap)", "the identity"),
        (_flag(normalizer, 4), "remove_extra_whitespaces", "false"),
        (not _flag(normalizer, 5), "escape_whitespaces false", "true"),
        (_flag(trainer, 24, default=False), "treat_whitespace_as_suffix", "false"),
    )
    for is_set, what, expected in options:
        if is_set:
            raise UnsupportedError(
                f"llama.cpp does not follow this option of a SentencePiece BPE model: {what}",
                where=path,
                expected=expected,
            )


def _check_pieces(pieces: list[Piece], path: Path) -> None:
    for token_id, piece in enumerate(pieces):
        if not math.isfinite(piece.score):
            raise FormatError(f"score of piece {token_id} is not finite", where=path, found=piece.score)
        if (piece.type is TokenType.BYTE) != is_byte(piece.text):
            raise FormatError(
                f"type of piece {token_id}", where=path, found=f"{short(piece.text)} is {piece.type.name}"
            )
    require_bytes({piece.text for piece in pieces}, path)


def _added_tokens(folder: Path, tokenizer_config: dict[str, Any], source: TokenizerJson | None) -> list[AddedToken]:
    """Collect added tokens by id; tokenizer_config.json wins over tokenizer.json, that over added_tokens.json."""
    found: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    for text, token_id in read_optional(path).items():
        number = check_id(token_id, short(text), path)
        found[number] = AddedToken(number, text)
    for token in source.added if source is not None else ():
        found[token.id] = token
    for token in read_decoder(tokenizer_config, folder / "tokenizer_config.json"):
        found[token.id] = token
    return list(found.values())


def _check_agreement(model: SentencePieceModel, source: TokenizerJson, overridden: set[int]) -> None:
    """Refuse a tokenizer.json beside a tokenizer.model of another vocabulary: one of them is stale."""
    texts = {token_id: text for text, token_id in source.vocab.items()}
    for token_id, piece in enumerate(model.pieces):
        if token_id not in overridden and texts.get(token_id, piece.text) != piece.text:
            raise FormatError(
                "tokenizer.model and tokenizer.json disagree",
                where=model.path.parent,
                expected=f"piece {token_id} is {short(piece.text)} in tokenizer.model",
                found=f"{short(texts[token_id])} in tokenizer.json",
                hint="remove the file that is not of this model",
            )


def _left_out(added: list[AddedToken], n_tokens: int) -> tuple[str, ...]:
    names = [f"{token.content} ({token.id})" for token in added if token.id >= n_tokens]
    if not names:
        return ()
    return (f"added tokens beyond the embedding's {n_tokens} rows are left out: {', '.join(names[:5])}",)
