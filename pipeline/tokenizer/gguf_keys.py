"""Read a tokenizer back from the tokenizer.* keys of a GGUF header, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import FormatError
from pipeline.tokenizer.special import KEYS
from pipeline.types import KV, ValueType

_ENDS = ("eos", "eot", "eom")
_INTEGERS = (ValueType.UINT32, ValueType.INT32)
TOKENS, MODEL, PRE, TEMPLATE = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.chat_template",
)


class TokenizerKeys:
    """What the tokenizer.* keys of *metadata* say; *where* is the file, for messages.

    Raises:
        FormatError: if there is no vocabulary, or a key has another type than llama.cpp gives it.
    """

    def __init__(self, metadata: Mapping[str, KV], where: object) -> None:
        self._metadata = metadata
        self._where = where
        self.entries = tuple(kv for key, kv in metadata.items() if key.startswith("tokenizer."))
        tokens = self._get(TOKENS, ValueType.ARRAY)
        if tokens is None or metadata[TOKENS].item is not ValueType.STRING:
            raise FormatError(
                "the file has no vocabulary", where=where, expected=TOKENS, hint="this is no model that generates text"
            )
        self.tokens: tuple[str, ...] = tuple(tokens)
        self.model = str(self._get(MODEL, ValueType.STRING) or "")
        self.pre = str(self._get(PRE, ValueType.STRING) or "default")
        self.chat_template: str | None = self._get(TEMPLATE, ValueType.STRING)
        self.ids = {kind: number for kind, key in KEYS.items() if (number := self._id(key)) is not None}
        self.end_ids = tuple(dict.fromkeys(self.ids[kind] for kind in _ENDS if kind in self.ids))

    def text(self, kind: str) -> str | None:
        """Give the text of the special token *kind*, such as "bos"."""
        return self.tokens[self.ids[kind]] if kind in self.ids else None

    def _id(self, key: str) -> int | None:
        number = self._get(key, *_INTEGERS)
        # llama.cpp ignores ids outside the vocabulary, with a warning; -1 means none.
        return number if number is not None and 0 <= number < len(self.tokens) else None

    def _get(self, key: str, *kinds: ValueType) -> Any:
        kv = self._metadata.get(key)
        if kv is not None and kv.type not in kinds:
            raise FormatError(
                f"{key} has another type",
                where=self._where,
                expected=" or ".join(kind.name for kind in kinds),
                found=kv.type.name,
            )
        return None if kv is None else kv.value
