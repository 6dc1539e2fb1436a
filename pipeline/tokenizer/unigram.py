"""SentencePiece unigram models, as GGUF's tokenizer model "t5": T5 and its kin, XLM-RoBERTa."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import optional, short
from pipeline.tokenizer import charsmap
from pipeline.tokenizer.bpe import strip_notes
from pipeline.tokenizer.pretokenizers import normalizers, pretokenizers
from pipeline.tokenizer.sentencepiece import ADDED_SCORE, UNUSED_SCORE
from pipeline.tokenizer.sentencepiece_json import prefix_notes
from pipeline.tokenizer.sentencepiece_model import SentencePieceModel
from pipeline.tokenizer.tokenizer_json import UNIGRAM, TokenizerJson
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
from pipeline.types import KV, ValueType, array, boolean

# fairseq put four tokens of its own before the pieces, whose first three it left out.
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
FAIRSEQ_FILE = "sentencepiece.bpe.model"
_FAIRSEQ_CLASSES = frozenset({"XLMRobertaTokenizer", "XLMRobertaTokenizerFast"})
# Other classes that renumber the pieces, each in its own way, which tokenizer.json alone says.
_RENUMBERING = frozenset(
    f"{name}Tokenizer{fast}"
    for name in ("Camembert", "Barthez", "MBart", "MBart50", "Nllb", "Pegasus", "BigBird", "DebertaV2", "XLNet", "XGLM")
    for fast in ("", "Fast")
)
_MERGING = [
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": BLANK},
]


@dataclass(frozen=True)
class _Pieces:
    """Pieces by id, and what is done to a text first."""

    path: Path
    slots: Slots
    scores: dict[int, float]
    unk: int
    ids: dict[str, int]
    space_prefix: bool
    merges_blanks: bool
    charsmap: bytes
    byte_fallback: bool


def unigram_vocabulary(
    source: TokenizerJson | None,
    model: SentencePieceModel | None,
    added: list[AddedToken],
    tokenizer_config: dict[str, Any],
    n_rows: int | None,
) -> Vocabulary:
    """Make the vocabulary of a unigram model from tokenizer.json (*source*), else from the *model* file.

    tokenizer.json counts where both are there: some classes renumber the pieces, and it has the new numbers.  Follows
    `T5Model.set_vocab` and `BertModel._xlmroberta_set_vocab` of llama.cpp's converter.

    Raises:
        FormatError: if the two are of different models, or there are more pieces than *n_rows*.
        UnsupportedError: if llama.cpp cannot do what the tokenizer does to text.
    """
    if source is not None:
        pieces = _from_json(source)
        if model is not None:
            _check_agreement(source, model)
    elif model is not None:
        pieces = _from_model(model, tokenizer_config)
    else:
        raise ValueError("neither tokenizer.json nor a model file")
    slots, scores = pieces.slots, pieces.scores
    n_tokens, fitting, left_out = fit(max(slots.texts) + 1, added, n_rows, pieces.path)
    for token in fitting:
        if token.id != pieces.unk:
            slots.put(token.id, added_text(token), added_type(token))
            scores.setdefault(token.id, ADDED_SCORE)
    tokens, types = slots.fill(n_tokens, pieces.path)
    return Vocabulary(
        kind=UNIGRAM,
        model="t5",
        pre="default",
        tokens=tokens,
        types=types,
        scores=tuple(_float32(scores.get(i, UNUSED_SCORE)) for i in range(n_tokens)),
        options=_options(pieces),
        ids=pieces.ids,
        notes=(*_notes(pieces), *left_out, *strip_notes(fitting), *(prefix_notes(source) if source else ())),
    )


def _from_json(source: TokenizerJson) -> _Pieces:
    unk = source.vocab[source.unk or ""]
    slots = Slots({token_id: text for text, token_id in source.vocab.items()}, {})
    slots.types = {
        token_id: TokenType.BYTE if source.byte_fallback and is_byte(text) else TokenType.NORMAL
        for token_id, text in slots.texts.items()
    }
    slots.types[unk] = TokenType.UNKNOWN
    before = _Before(source)
    return _Pieces(
        path=source.path,
        slots=slots,
        scores=dict(enumerate(source.scores)),
        unk=unk,
        ids={"unk": unk},
        space_prefix=before.space_prefix,
        merges_blanks=before.merges_blanks,
        charsmap=before.charsmap,
        byte_fallback=source.byte_fallback,
    )


def _from_model(model: SentencePieceModel, tokenizer_config: dict[str, Any]) -> _Pieces:
    """Take the pieces of the model file, renumbered as XLM-RoBERTa does where this is its."""
    config = model.path.with_name("tokenizer_config.json")
    name = optional(tokenizer_config, "tokenizer_class", str, config, "")
    is_fairseq = name in _FAIRSEQ_CLASSES or (name is None and model.path.name == FAIRSEQ_FILE)
    if name in _RENUMBERING or (model.path.name == FAIRSEQ_FILE and not is_fairseq):
        raise UnsupportedError(
            "this tokenizer class renumbers the pieces of the model file",
            where=model.path,
            expected="tokenizer.json beside it",
            found=short(name),
            hint="transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json",
        )
    charsmap.check(model.charsmap, model.path)
    texts = {i: piece.text for i, piece in enumerate(model.pieces)}
    types = {i: piece.type for i, piece in enumerate(model.pieces)}
    scores = {i: piece.score for i, piece in enumerate(model.pieces)}
    ids = dict(model.ids)
    if is_fairseq:
        kinds = (TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN)
        texts = {**dict(enumerate(_FAIRSEQ)), **{i + 1: text for i, text in texts.items() if i > 2}}
        types = {**dict(enumerate(kinds)), **{i + 1: kind for i, kind in types.items() if i > 2}}
        scores = {**dict.fromkeys(range(4), 0.0), **{i + 1: score for i, score in scores.items() if i > 2}}
        texts[len(model.pieces) + 1], types[len(model.pieces) + 1] = "<mask>", TokenType.CONTROL
        scores[len(model.pieces) + 1] = 0.0
        ids = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "sep": 2, "mask": len(model.pieces) + 1}
    if "unk" not in ids:
        raise FormatError("SentencePiece model names no unknown piece", where=model.path)
    return _Pieces(
        path=model.path,
        slots=Slots(texts, types),
        scores=scores,
        unk=ids["unk"],
        ids=ids,
        space_prefix=model.add_space_prefix,
        merges_blanks=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
        byte_fallback=TokenType.BYTE in types.values(),
    )


class _Before:
    """What tokenizer.json does to a text before it is cut: the character map, blanks merged, a space put before."""

    def __init__(self, source: TokenizerJson) -> None:
        self.charsmap = b""
        self.merges_blanks = False
        self.space_prefix = False
        for step in normalizers(source.normalizer, source.path):
            self._normalizer(step, source.path)
        steps = pretokenizers(source.pre_tokenizer, source.path)
        for step in steps:
            self._pre_tokenizer(step, source.path)
        if not any(step["type"] == "Metaspace" for step in steps):
            raise _cannot(source.pre_tokenizer, "a Metaspace step", source.path)

    def _normalizer(self, step: dict[str, Any], path: Path) -> None:
        if step["type"] == "Precompiled" and not self.charsmap:
            text = optional(step, "precompiled_charsmap", str, path, "Precompiled")
            self.charsmap = charsmap.decode(text or "", path)
        elif step in _MERGING:
            self.merges_blanks = True
        elif step["type"] != "Strip":
            raise _cannot(step, "a character map (Precompiled), blanks stripped and merged", path)

    def _pre_tokenizer(self, step: dict[str, Any], path: Path) -> None:
        if step["type"] == "WhitespaceSplit":
            self.merges_blanks = True
        elif step["type"] == "Metaspace" and step.get("replacement") == BLANK:
            scheme = optional(step, "prepend_scheme", str, path, "Metaspace")
            old = optional(step, "add_prefix_space", bool, path, "Metaspace") is not False
            self.space_prefix = old if scheme is None else scheme != "never"
        else:
            raise _cannot(step, "WhitespaceSplit, Metaspace", path)


def _cannot(step: Any, expected: str, path: Path) -> UnsupportedError:
    return UnsupportedError(
        "llama.cpp cannot prepare text as this unigram tokenizer does", where=path, expected=expected, found=short(step)
    )


def _options(pieces: _Pieces) -> tuple[KV, ...]:
    options = [
        boolean("tokenizer.ggml.add_space_prefix", pieces.space_prefix),
        boolean("tokenizer.ggml.remove_extra_whitespaces", pieces.merges_blanks),
    ]
    if pieces.charsmap:
        options.append(array("tokenizer.ggml.precompiled_charsmap", ValueType.UINT8, pieces.charsmap))
    return tuple(options)


def _notes(pieces: _Pieces) -> tuple[str, ...]:
    notes = []
    if pieces.charsmap:
        notes.append("llama.cpp applies the character map by longest match: decomposed text is cut differently")
    if pieces.byte_fallback:
        notes.append("llama.cpp's unigram tokenizer has no byte fallback: characters without a piece become unknown")
    return tuple(notes)


def _check_agreement(source: TokenizerJson, model: SentencePieceModel) -> None:
    """Refuse a tokenizer.json beside a model file of another vocabulary: one of them is stale."""
    for piece in model.pieces:
        if model.kind != UNIGRAM or (piece.type is TokenType.NORMAL and piece.text not in source.vocab):
            raise FormatError(
                f"{model.path.name} and tokenizer.json disagree",
                where=model.path.parent,
                expected=f"a unigram model with the piece {short(piece.text)} in both",
                found=f"{model.kind} in {model.path.name}",
                hint="remove the file that is not of this model",
            )


def _float32(score: float) -> float:
    return float(np.float32(score))
