"""What sentence-transformers writes beside an embedding model for its users: how long a text may be, and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint._pooling import module_names
from pipeline.errors import FormatError
from pipeline.strict_json import read_json

_MAX_BYTES = 1_000_000
_LENGTHS = "sentence_*_config.json"  # the middle was the architecture once, and is "bert" now
_PROMPTS = "config_sentence_transformers.json"
_SHOWN = 4


@dataclass(frozen=True)
class SentenceFacts:
    """*max_tokens* is where its makers cut a text, in tokens; *notes* say what Ollama does otherwise."""

    max_tokens: int | None = None
    notes: tuple[str, ...] = ()


def read_sentence_facts(folder: Path) -> SentenceFacts:
    """Read the files beside the weights; without modules.json there is nothing to read.

    Raises:
        FormatError: if a file is not what it claims.
    """
    names = module_names(folder)
    if names is None:
        return SentenceFacts()
    notes = []
    if "Pooling" in names and "Normalize" not in names:
        notes.append("Ollama gives vectors of length 1, the checkpoint others: their angles, so cosines, are the same")
    prompts = _prompts(folder / _PROMPTS)
    if prompts:
        more = " ..." if len(prompts) > _SHOWN else ""
        shown = ", ".join(f"{name}: {text!r}" for name, text in prompts[:_SHOWN])
        notes.append(f"Ollama adds no prompt: write the checkpoint's before each text yourself ({shown}{more})")
    return SentenceFacts(_max_tokens(folder), tuple(notes))


def _max_tokens(folder: Path) -> int | None:
    for path in sorted(folder.glob(_LENGTHS)):
        length = read_json(path, _MAX_BYTES).get("max_seq_length")
        if length is None:
            continue
        if type(length) is not int or not 0 < length < 1 << 31:
            raise FormatError("max_seq_length", where=path, expected="a number of tokens", found=repr(length)[:80])
        return length
    return None


def _prompts(path: Path) -> list[tuple[str, str]]:
    config: dict[str, Any] = read_json(path, _MAX_BYTES) if path.exists() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise FormatError("prompts", where=path, expected="a table of texts", found=repr(prompts)[:80])
    return [(str(name)[:40], text[:80]) for name, text in prompts.items() if text]
