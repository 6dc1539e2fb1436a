"""A checkpoint's own tokenizer, run by the library it was made for: tokenizers, or sentencepiece for a model file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Library

from pipeline.errors import PipelineError, UnsupportedError
from pipeline.tokenizer import Source, read_source
from pipeline.tokenizer.pretokenizers import normalizers
from pipeline.tokenizer.tokenizer_json import TokenizerJson
from pipeline.tokenizer.unigram import FAIRSEQ_FILE

Encode = Callable[[str], list[int]]

_PANIC = "PanicException"  # pyo3's, which is no Exception and has no name to import


@dataclass(frozen=True)
class Reference:
    """A tokenizer that the engine's is compared with.

    *encode* gives ids without BOS and EOS.  *parses_special* tells whether it takes the text of a special token for
    that token.  *document* is the tokenizer.json it was made of, None for a SentencePiece model.  *name* is for people.
    """

    name: str
    encode: Encode
    parses_special: bool
    document: dict[str, Any] | None = None

    @property
    def added(self) -> list[dict[str, Any]]:
        """The entries of added_tokens."""
        return [] if self.document is None else list(self.document.get("added_tokens") or ())

    def normalizes(self, kind: str) -> bool:
        """Tell whether the normalizer has a step of type *kind*."""
        if self.document is None:
            return False
        return any(step["type"] == kind for step in normalizers(self.document.get("normalizer"), Path()))

    def changed(self, change: Callable[[dict[str, Any]], None]) -> Reference:
        """Make the same tokenizer with *change* done to its document."""
        whole = self.document or {}
        document = {key: value if key == "model" else copy.deepcopy(value) for key, value in whole.items()}
        change(document)
        return _from_document(self.name, document, json.dumps(document))


def open_reference(folder: Path) -> Reference:
    """Load the tokenizer of the checkpoint in *folder*, which `read_tokenizer` accepts.

    Raises:
        FormatError: if its files are not what they claim.
        UnsupportedError: if the library cannot load it.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text("utf-8")
        return _from_document("tokenizers on tokenizer.json", json.loads(text), text)
    source = read_source(folder)
    if source.json is not None:
        document = _document(source.json)
        return _from_document(f"tokenizers on {source.json.path.name}", document, json.dumps(document))
    return _from_model(source)


def guarded(encode: Encode) -> Encode:
    """Turn whatever a library raises, a panic of its Rust part included, into an error of ours.

    What ends the process, such as a signal, is no answer of the library.
    """

    def run(text: str) -> list[int]:
        try:
            return encode(text)
        except PipelineError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                raise
            raise UnsupportedError(
                "the checkpoint's own tokenizer fails on a text", found=f"{type(error).__name__}: {error}"
            ) from error

    return run


def _from_document(name: str, document: dict[str, Any], text: str) -> Reference:
    try:
        library = Library.from_str(text)
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise UnsupportedError("the tokenizers library cannot load this tokenizer", where=name, found=error) from error
    library.no_truncation()
    library.no_padding()
    return Reference(
        name, guarded(lambda text: list(library.encode(text, add_special_tokens=False).ids)), True, document
    )


def _from_model(source: Source) -> Reference:
    assert source.model is not None  # noqa: S101 - a source has one or the other
    path = source.model.path
    try:
        library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # likewise
        raise UnsupportedError("the sentencepiece library cannot load this model", where=path, found=error) from error
    if path.name != FAIRSEQ_FILE:
        return Reference(f"sentencepiece on {path.name}", guarded(lambda text: list(library.encode(text))), False)
    moved = {0: 3, 1: 0, 2: 2}  # as XLM-RoBERTa numbers the first three; all others move by one
    return Reference(
        f"sentencepiece on {path.name}, renumbered",
        guarded(lambda text: [moved.get(i, i + 1) for i in library.encode(text)]),
        False,
    )


def _document(source: TokenizerJson) -> dict[str, Any]:
    """Write what stands for a tokenizer.json as one."""
    model: dict[str, Any] = {"type": "BPE", "vocab": source.vocab, "merges": source.merges}
    model["ignore_merges"] = source.ignore_merges
    if not source.merges:
        model = {
            "type": "WordPiece",
            "vocab": source.vocab,
            "unk_token": source.unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": token.id, "content": token.content, "special": token.special, "normalized": token.normalized, **flags}
        for token in sorted(source.added, key=lambda token: token.id)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": source.normalizer,
        "pre_tokenizer": _complete(source.pre_tokenizer),
        "model": model,
    }


def _complete(node: Any) -> Any:
    """Say what the library wants said of a ByteLevel step."""
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Sequence":
        return {**node, "pretokenizers": [_complete(child) for child in node["pretokenizers"]]}
    return {"trim_offsets": True, **node} if node.get("type") == "ByteLevel" else node
