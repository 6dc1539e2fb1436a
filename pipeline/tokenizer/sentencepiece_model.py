"""Reads a SentencePiece model file (sentencepiece_model.proto): pieces with scores, and what it does to text."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import read_bytes, short
from pipeline.tokenizer import _protobuf as wire
from pipeline.tokenizer.tokenizer_json import MAX_SCORE, SENTENCEPIECE, UNIGRAM
from pipeline.tokenizer.vocabulary import MAX_TOKENS, TokenType, is_byte

# The largest of the known models has about 20 MB.
MAX_MODEL_BYTES = 32 << 20

_KINDS = {1: UNIGRAM, 2: SENTENCEPIECE}
_OTHER_KINDS = {3: "word", 4: "char"}
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
_SPECIAL = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # field of TrainerSpec, and its default


@dataclass(frozen=True)
class Piece:
    """One piece of a SentencePiece model; *score* is float32."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says.

    *kind* is SENTENCEPIECE (BPE) or UNIGRAM; *pieces* are by id; *ids* are the special ids it names ("bos" ...).
    *add_space_prefix*, *remove_extra_whitespaces* and *charsmap* are what is done to a text first.
    """

    path: Path
    kind: str
    pieces: tuple[Piece, ...]
    ids: dict[str, int]
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes


def read_model(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model.

    Raises:
        FormatError: if it is none.
        UnsupportedError: for models and options that llama.cpp does not follow.
    """
    data = read_bytes(path, MAX_MODEL_BYTES)
    try:
        model = _parse(data, path)
    except (ValueError, KeyError) as error:
        raise FormatError("file is no SentencePiece model", where=path, found=short(str(error))) from error
    if not 0 < len(model.pieces) <= MAX_TOKENS:
        raise FormatError(
            "file is no SentencePiece model", where=path, expected=f"1 to {MAX_TOKENS} pieces", found=len(model.pieces)
        )
    _check_pieces(model)
    return model


def require_bytes(texts: Collection[str], path: Path) -> None:
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


def _parse(data: bytes, path: Path) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: Message = {}
    normalizer: Message = {}
    for number, value in wire.fields(data, limit=MAX_TOKENS + 100):
        if number == 1:
            pieces.append(_piece(wire.as_bytes(value)))
        elif number == 2:
            trainer.update(wire.fields(wire.as_bytes(value)))
        elif number == 3:
            normalizer.update(wire.fields(wire.as_bytes(value)))
    kind = _kind(trainer, path)
    _refuse_options(kind, trainer, normalizer, path)
    ids = {name: wire.as_int(trainer.get(number, default)) for name, (number, default) in _SPECIAL.items()}
    return SentencePieceModel(
        path=path,
        kind=kind,
        pieces=tuple(pieces),
        ids={name: token_id for name, token_id in ids.items() if 0 <= token_id < len(pieces)},
        add_space_prefix=_flag(normalizer, 3),
        remove_extra_whitespaces=_flag(normalizer, 4),
        charsmap=wire.as_bytes(normalizer.get(2, b"")),
    )


def _piece(data: bytes) -> Piece:
    message = dict(wire.fields(data))
    return Piece(
        text=wire.as_bytes(message[1]).decode("utf-8"),
        score=wire.as_float(message.get(2, 0)),
        type=_TYPES[wire.as_int(message.get(3, 1))],
    )


def _flag(message: Message, number: int, default: bool = True) -> bool:
    return bool(wire.as_int(message.get(number, int(default))))


def _kind(trainer: Message, path: Path) -> str:
    number = wire.as_int(trainer.get(3, 1))
    if number not in _KINDS:
        kind = _OTHER_KINDS.get(number, "unknown")
        raise UnsupportedError(
            f"SentencePiece {kind} models are not supported",
            where=path,
            expected="BPE or unigram",
            found=kind,
            hint="llama.cpp has no such tokenizer",
        )
    return _KINDS[number]


def _refuse_options(kind: str, trainer: Message, normalizer: Message, path: Path) -> None:
    of_bpe = kind == SENTENCEPIECE
    options = (
        (of_bpe and bool(normalizer.get(2)), "a character map (precompiled_charsmap)", "the identity"),
        (of_bpe and _flag(normalizer, 4), "remove_extra_whitespaces", "false"),
        (not _flag(normalizer, 5), "escape_whitespaces false", "true"),
        (_flag(trainer, 24, default=False), "treat_whitespace_as_suffix", "false"),
    )
    for is_set, what, expected in options:
        if is_set:
            raise UnsupportedError(
                f"llama.cpp does not follow this option of a {kind} model: {what}", where=path, expected=expected
            )


def _check_pieces(model: SentencePieceModel) -> None:
    for token_id, piece in enumerate(model.pieces):
        if not math.isfinite(piece.score) or abs(piece.score) > MAX_SCORE:
            raise FormatError(f"score of piece {token_id} is out of range", where=model.path, found=piece.score)
        if (piece.type is TokenType.BYTE) != is_byte(piece.text):
            raise FormatError(
                f"type of piece {token_id}", where=model.path, found=f"{short(piece.text)} is {piece.type.name}"
            )
    if model.kind == SENTENCEPIECE:
        require_bytes({piece.text for piece in model.pieces}, model.path)
