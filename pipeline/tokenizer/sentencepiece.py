"""SentencePiece BPE from tokenizer.model: pieces with scores, as GGUF's tokenizer model "llama"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import FormatError
from pipeline.strict_json import read_optional, short
from pipeline.tokenizer.sentencepiece_model import SentencePieceModel
from pipeline.tokenizer.tokenizer_json import SENTENCEPIECE, TokenizerJson, check_id, read_decoder
from pipeline.tokenizer.vocabulary import AddedToken, Slots, Vocabulary, added_text, added_type, fit

ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0


def sentencepiece_vocabulary(
    model: SentencePieceModel,
    source: TokenizerJson | None,
    folder: Path,
    tokenizer_config: dict[str, Any],
    n_rows: int | None,
) -> Vocabulary:
    """Make the vocabulary of a SentencePiece model with the added tokens that lie beside it.

    Ids up to *n_rows* (the rows of the embedding) become unused tokens [PADn].  Follows
    `TextModel._create_vocab_sentencepiece` of llama.cpp's converter.

    Raises:
        FormatError: if the model has more pieces than *n_rows*, or tokenizer.json has other ones.
    """
    added = added_tokens(folder, tokenizer_config, source)
    n_tokens, fitting, notes = fit(len(model.pieces), added, n_rows, model.path)
    slots = Slots({i: piece.text for i, piece in enumerate(model.pieces)}, {})
    slots.types = {i: piece.type for i, piece in enumerate(model.pieces)}
    scores = {i: piece.score for i, piece in enumerate(model.pieces)}
    for token in fitting:
        slots.put(token.id, added_text(token), added_type(token))
        scores[token.id] = ADDED_SCORE
    if source is not None:
        _check_agreement(model, source, {token.id for token in added})
    tokens, types = slots.fill(n_tokens, model.path)
    return Vocabulary(
        kind=SENTENCEPIECE,
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=tuple(scores.get(i, UNUSED_SCORE) for i in range(n_tokens)),
        ids=model.ids,
        notes=notes,
    )


def added_tokens(folder: Path, tokenizer_config: dict[str, Any], source: TokenizerJson | None) -> list[AddedToken]:
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
