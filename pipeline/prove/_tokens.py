"""Compares the tokens of a prompt: those that the engine's tokenizer makes, and those of the checkpoint's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UnsupportedError
from pipeline.prove._limits import LIMITS, engine_of
from pipeline.prove._reference import Reference
from pipeline.prove.tokenizer import Trial
from pipeline.runtime import ChatSession
from pipeline.types import KV

_ENDS = {
    "added_bos": "llama.cpp begins a prompt with BOS where the template does not",
    "added_eos": "llama.cpp ends a prompt with EOS where the template does not",
}


@dataclass(frozen=True)
class TokenDifference:
    """Two lists of ids that part at *index*; *limits* explain it, none means that something is wrong."""

    index: int
    expected: tuple[int, ...]
    found: tuple[int, ...]
    limits: tuple[str, ...]


class Tokens:
    """The tokenizer of the model that *session* runs beside the checkpoint's own; *metadata* is the GGUF's header."""

    def __init__(self, session: ChatSession, metadata: Mapping[str, KV], reference: Reference) -> None:
        self._session = session
        self._reference = reference
        self._ids = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
        self._trial = Trial(self._tokenize, engine_of(metadata), reference)
        self.unable = None if reference.parses_special else f"{reference.name} does not know special tokens in a text"

    @property
    def says(self) -> dict[str, str]:
        """All known limits, in words."""
        return {limit.name: limit.says for limit in LIMITS} | _ENDS

    def index(self, expected: str, found: str) -> int | None:
        """Find the first token in which two prompts part, by the checkpoint's own tokenizer; None if it cannot tell."""
        if self.unable:
            return None
        try:
            return first_difference(self._reference.encode(expected), self._reference.encode(found))
        except UnsupportedError:
            return None

    def difference(self, expected: str, found: str) -> TokenDifference | None:
        """Compare the ids that the checkpoint's tokenizer makes of *expected* with the engine's of *found*.

        Raises:
            UnsupportedError: if the checkpoint's own tokenizer fails.
            ToolError: if the engine fails.
        """
        if self.unable:
            return None
        ours = self._reference.encode(expected)
        theirs = self._session.tokenize(found, add_special=True)
        if ours == theirs:
            return None
        limits, rest = self._without_ends(ours, theirs)
        if rest != ours:
            cut = self._trial.difference("", expected)
            explained = cut is not None and list(cut.found) == rest
            limits = (*limits, *cut.limits) if cut is not None and explained and cut.limits else ()
        return TokenDifference(first_difference(ours, theirs), tuple(ours), tuple(theirs), limits)

    def _without_ends(self, ours: list[int], theirs: list[int]) -> tuple[tuple[str, ...], list[int]]:
        """Take away the BOS and the EOS that the engine added."""
        limits = []
        for name, at, rest in (("bos", 0, slice(1, None)), ("eos", -1, slice(None, -1))):
            kv = self._ids[name]
            if kv is not None and theirs and theirs[at] == kv.value and (not ours or ours[at] != kv.value):
                limits.append(f"added_{name}")
                theirs = theirs[rest]
        return tuple(limits), theirs

    def _tokenize(self, text: str, parses_special: bool) -> list[int]:
        return self._session.tokenize(text, parse_special=parses_special)


def first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    """Find where two sequences part; the shorter one's length where it begins the other."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
