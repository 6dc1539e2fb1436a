"""Finds the tokenizer's files in a checkpoint folder and reads them, whatever form they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.strict_json import has_file, read_optional
from pipeline.tokenizer.ranks import QWEN_DEFAULTS, TEKKEN_DEFAULTS, read_tekken, read_tiktoken
from pipeline.tokenizer.sentencepiece_model import SentencePieceModel, read_model
from pipeline.tokenizer.tokenizer_json import SENTENCEPIECE, UNIGRAM, TokenizerJson, read_tokenizer_json
from pipeline.tokenizer.two_files import read_two_files
from pipeline.tokenizer.unigram import FAIRSEQ_FILE
from pipeline.tokenizer.wordpiece import read_vocab_txt, special_defaults

T5_FILE = "spiece.model"
_POST_PROCESSORS = {
    T5_FILE: {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    },
    FAIRSEQ_FILE: {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]},
}

MODEL_FILES = ("tokenizer.model", T5_FILE, FAIRSEQ_FILE)


@dataclass(frozen=True)
class Source:
    """What the folder has: tokenizer.json or what stands for it, a SentencePiece model, or both.

    *defaults* is what tokenizer_config.json means where it is silent.
    """

    json: TokenizerJson | None
    model: SentencePieceModel | None = None
    defaults: dict[str, str] = field(default_factory=dict)

    @property
    def post_processor(self) -> Any:
        """What is put around a text, as tokenizer.json says it or as the name of the model file means it."""
        if self.json is not None:
            return self.json.post_processor
        return None if self.model is None else _POST_PROCESSORS.get(self.model.path.name)


def read_source(folder: Path) -> Source:
    """Read the tokenizer of *folder*: tokenizer.json first, then the forms that came before it.

    Raises:
        FormatError: if a file is not what it claims.
        UnsupportedError: if there is none, or none that llama.cpp can follow.
    """
    tokenizer_config = read_optional(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if has_file(path):
        document = read_tokenizer_json(path)
        return Source(document, _model(folder) if document.family in (SENTENCEPIECE, UNIGRAM) else None)
    model = _model(folder)
    if model is not None:
        return Source(None, model)
    for is_there, read in _FORMS:
        if is_there(folder):
            return read(folder, tokenizer_config)
    raise UnsupportedError(
        "checkpoint has no tokenizer",
        where=folder,
        expected=f"tokenizer.json, {', '.join(MODEL_FILES)}, vocab.json with merges.txt, tekken.json, vocab.txt",
        found=", ".join(sorted(p.name for p in folder.glob("*tok*"))) or "none of them",
        hint="transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json",
    )


def _model(folder: Path) -> SentencePieceModel | None:
    path = next((folder / name for name in MODEL_FILES if has_file(folder / name)), None)
    return None if path is None else read_model(path)


def _rank_file(folder: Path) -> Path | None:
    return min(folder.glob("*.tiktoken"), default=None)


def _tiktoken(folder: Path, tokenizer_config: dict[str, Any]) -> Source:
    path = _rank_file(folder)
    assert path is not None  # noqa: S101 - it is there, or this form was not chosen
    return Source(read_tiktoken(path, tokenizer_config), defaults=QWEN_DEFAULTS)


_FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path, dict[str, Any]], Source]], ...] = (
    (
        lambda folder: has_file(folder / "vocab.json") and has_file(folder / "merges.txt"),
        lambda folder, config: Source(read_two_files(folder, config)),
    ),
    (
        lambda folder: has_file(folder / "tekken.json"),
        lambda folder, _: Source(read_tekken(folder / "tekken.json"), defaults=TEKKEN_DEFAULTS),
    ),
    (
        lambda folder: has_file(folder / "vocab.txt"),
        lambda folder, config: Source(read_vocab_txt(folder / "vocab.txt", config), defaults=special_defaults()),
    ),
    (lambda folder: _rank_file(folder) is not None, _tiktoken),
)
