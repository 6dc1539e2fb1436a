"""The tokenizer stage: from a checkpoint folder to the tokenizer.* keys of the GGUF header.

Reads tokenizer.json or the forms that came before it, tokenizer_config.json, generation_config.json and the chat
template; weights are never touched and nothing is run.  What llama.cpp cannot follow is refused, or said in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError
from pipeline.strict_json import optional, read_optional, short
from pipeline.tokenizer.bpe import byte_level_vocabulary
from pipeline.tokenizer.chat_template import ChatTemplates, read_chat_templates, template_keys
from pipeline.tokenizer.gguf_keys import TokenizerKeys
from pipeline.tokenizer.sentencepiece import added_tokens, sentencepiece_vocabulary
from pipeline.tokenizer.sentencepiece_json import json_vocabulary, prefix_notes, space_prefix
from pipeline.tokenizer.sources import Source, read_source
from pipeline.tokenizer.special import KEYS, Special, read_eos_ids, read_special, token_text
from pipeline.tokenizer.tokenizer_json import BYTE_LEVEL, UNIGRAM, WORDPIECE
from pipeline.tokenizer.unigram import unigram_vocabulary
from pipeline.tokenizer.vocabulary import MAX_TOKENS, Vocabulary
from pipeline.tokenizer.wordpiece import wordpiece_vocabulary
from pipeline.types import KV, ValueType, array, boolean, string, u32

__all__ = ["Source", "Tokenizer", "read_source", "read_tokenizer", "tokenizer_of_gguf"]


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's tokenizer, as GGUF has it.

    *metadata* are the tokenizer.* entries in file order.  *bos* and *eos* are the texts that the chat template sees.
    *eos_ids* are all ids that end a generation, the tokenizer's own first.  *pre* is llama.cpp's rule of
    pre-tokenization, *kind* the tokenizer in words; *notes* say what llama.cpp does differently.
    """

    metadata: tuple[KV, ...]
    chat_template: str | None
    bos: str | None
    eos: str | None
    eos_ids: tuple[int, ...]
    n_tokens: int
    pre: str
    kind: str
    notes: tuple[str, ...]

    @property
    def tokens(self) -> Sequence[str]:
        """The text of each token, by id."""
        return next(kv.value for kv in self.metadata if kv.key == "tokenizer.ggml.tokens")

    @property
    def tool_template(self) -> str | None:
        """The chat template for conversations with tools, if there is another one for them."""
        return next((str(kv.value) for kv in self.metadata if kv.key == "tokenizer.chat_template.tool_use"), None)

    @property
    def eos_texts(self) -> tuple[str, ...]:
        """The texts of *eos_ids*."""
        tokens = self.tokens
        return tuple(tokens[token_id] for token_id in self.eos_ids)


def read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Read the tokenizer of the checkpoint in *folder*.

    *config* is config.json's text part; its vocab_size, the rows of the embedding, pads the vocabulary.

    Raises:
        FormatError: if a file is not what it claims, or the vocabulary is larger than vocab_size.
        UnsupportedError: if llama.cpp has no such tokenizer.
    """
    source = read_source(folder)
    tokenizer_config = {**source.defaults, **read_optional(folder / "tokenizer_config.json")}
    vocabulary = _vocabulary(folder, source, tokenizer_config, config, _n_rows(config, folder))
    configs = [read_optional(folder / "config.json"), config]
    special = read_special(folder, vocabulary, source.post_processor, tokenizer_config, configs)
    templates = read_chat_templates(folder, tokenizer_config)
    return Tokenizer(
        metadata=_keys(vocabulary, special, templates),
        chat_template=templates.default,
        bos=_text(folder, tokenizer_config, "bos", special, vocabulary),
        eos=_text(folder, tokenizer_config, "eos", special, vocabulary),
        eos_ids=_eos_ids(folder, config, special, len(vocabulary.tokens)),
        n_tokens=len(vocabulary.tokens),
        pre=vocabulary.pre,
        kind=vocabulary.kind,
        notes=vocabulary.notes + special.notes,
    )


def tokenizer_of_gguf(metadata: Mapping[str, KV], where: object) -> Tokenizer:
    """Read the tokenizer that the header of a GGUF holds; *where* is the file, for messages.

    Raises:
        FormatError: if there is no vocabulary, or a key has another type than llama.cpp gives it.
    """
    keys = TokenizerKeys(metadata, where)
    return Tokenizer(
        metadata=keys.entries,
        chat_template=keys.chat_template,
        bos=keys.text("bos"),
        eos=keys.text("eos"),
        eos_ids=keys.end_ids,
        n_tokens=len(keys.tokens),
        pre=keys.pre,
        kind=keys.model,
        notes=(),
    )


def _vocabulary(
    folder: Path, source: Source, tokenizer_config: dict[str, Any], config: dict[str, Any], n_rows: int | None
) -> Vocabulary:
    """Choose the reader by the kind of tokenizer."""
    document, model = source.json, source.model
    family = document.family if document is not None else model.kind if model is not None else None
    if document is not None and family == BYTE_LEVEL:
        return byte_level_vocabulary(document, n_rows)
    if document is not None and family == WORDPIECE:
        return wordpiece_vocabulary(document, n_rows)
    if family == UNIGRAM:
        added = added_tokens(folder, tokenizer_config, document)
        return unigram_vocabulary(document, model, added, tokenizer_config, n_rows)
    return _sentencepiece(folder, source, tokenizer_config, config, n_rows)


def _sentencepiece(
    folder: Path, source: Source, tokenizer_config: dict[str, Any], config: dict[str, Any], n_rows: int | None
) -> Vocabulary:
    """Read a SentencePiece BPE, rather from its model file; say the space prefix."""
    document, model = source.json, source.model
    if model is not None:
        vocabulary = sentencepiece_vocabulary(model, document, folder, tokenizer_config, n_rows)
    elif document is not None:
        model_type = optional(config, "model_type", str, folder / "config.json", "")
        vocabulary = json_vocabulary(document, n_rows, model_type)
    if document is not None:
        prefix = space_prefix(document)
        vocabulary = replace(vocabulary, notes=vocabulary.notes + prefix_notes(document))
    elif model is not None:
        prefix = model.add_space_prefix
    stated = optional(tokenizer_config, "add_prefix_space", bool, folder / "tokenizer_config.json", "")
    prefix = prefix if stated is None else stated
    # llama.cpp's default is true; the official converter writes the key where the checkpoint says something.
    return replace(vocabulary, add_space_prefix=prefix if stated is not None or not prefix else None)


def _n_rows(config: dict[str, Any], folder: Path) -> int | None:
    path = folder / "config.json"
    size = optional(config, "vocab_size", int, path, "")
    if size is not None and not 0 < size <= MAX_TOKENS:
        raise FormatError("vocab_size", where=path, expected=f"1 to {MAX_TOKENS}", found=short(size))
    return size


def _keys(vocabulary: Vocabulary, special: Special, templates: ChatTemplates) -> tuple[KV, ...]:
    keys = [*_vocabulary_keys(vocabulary), *_special_keys(special), *template_keys(templates), *vocabulary.normalizer]
    if vocabulary.add_space_prefix is not None:
        keys.append(boolean("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix))
    return tuple(keys)


def _vocabulary_keys(vocabulary: Vocabulary) -> tuple[KV, ...]:
    keys = [string("tokenizer.ggml.model", vocabulary.model)]
    if vocabulary.writes_pre:
        keys.append(string("tokenizer.ggml.pre", vocabulary.pre))
    keys.append(array("tokenizer.ggml.tokens", ValueType.STRING, vocabulary.tokens))
    if vocabulary.scores is not None:
        keys.append(array("tokenizer.ggml.scores", ValueType.FLOAT32, vocabulary.scores))
    keys.append(array("tokenizer.ggml.token_type", ValueType.INT32, [int(t) for t in vocabulary.types]))
    if vocabulary.merges is not None:
        keys.append(array("tokenizer.ggml.merges", ValueType.STRING, vocabulary.merges))
    return (*keys, *vocabulary.options)


def _special_keys(special: Special) -> tuple[KV, ...]:
    ids = [u32(KEYS[kind], token_id) for kind, token_id in special.ids.items()]
    adds = [boolean(f"tokenizer.ggml.add_{kind}_token", flag) for kind, flag in special.adds.items()]
    return (*ids, *adds)


def _text(
    folder: Path, tokenizer_config: dict[str, Any], kind: str, special: Special, vocabulary: Vocabulary
) -> str | None:
    """Give the text of a special token as the chat template sees it: what the file says, null included."""
    if f"{kind}_token" in tokenizer_config:
        return token_text(tokenizer_config, kind, folder / "tokenizer_config.json")
    token_id = special.ids.get(kind)
    return None if token_id is None else vocabulary.tokens[token_id]


def _eos_ids(folder: Path, config: dict[str, Any], special: Special, n_tokens: int) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    own = [special.ids["eos"]] if "eos" in special.ids else []
    found = [*own, *read_eos_ids(read_optional(path), path), *read_eos_ids(config, folder / "config.json")]
    return tuple(token_id for token_id in dict.fromkeys(found) if token_id < n_tokens)
