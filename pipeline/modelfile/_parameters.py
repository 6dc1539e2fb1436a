"""The PARAMETER names that Ollama accepts, and their types (`Options` and `Runner` in its api/types.go)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import PipelineError, UsageError

Parameter = tuple[str, int | float | bool | str]

TYPES: dict[str, type] = {
    "num_keep": int,
    "seed": int,
    "num_predict": int,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_last_n": int,
    "temperature": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": str,
    "num_ctx": int,
    "num_batch": int,
    "num_gpu": int,
    "main_gpu": int,
    "use_mmap": bool,
    "num_thread": int,
    "draft_num_predict": int,
}
# Names of the past: Ollama warns about these and goes on without them.
IGNORED = frozenset({
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta",
})  # fmt: skip
# Ollama stops at this one since 0.34.
_REFUSED = {"typical_p": "leave it out; min_p or top_p narrow the choice in much the same way"}
_MEANING = {int: "an integer", float: "a number", bool: "true or false", str: "a text that is not empty"}
_INT64 = range(-(2**63), 2**63)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def float32(value: float) -> float:
    """Round to float32, given as the shortest decimal that means the same float32 (as Go writes it)."""
    return float(str(np.float32(value)))


def is_number(value: Any) -> bool:
    """Tell whether *value* is a number that float32 can hold; true and false are none, nor are NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FLOAT32_MAX <= value <= _FLOAT32_MAX


def checked(name: str, value: Any, *, where: str, error: type[PipelineError] = UsageError) -> Parameter:
    """Return the pair (*name*, *value*) with the value in the parameter's own type; one in IGNORED stays as it is.

    Raises:
        PipelineError: an *error*, if Ollama knows no such parameter or refuses it, or it has another type.
    """
    if name in IGNORED:
        return name, value
    if name in _REFUSED:
        raise error(f"Ollama no longer supports the parameter {name!r}", where=where, hint=_REFUSED[name])
    kind = TYPES.get(name)
    if kind is None:
        raise error(
            f"Ollama has no parameter {name!r}", where=where, expected=", ".join(sorted(TYPES)), hint="leave it out"
        )
    if not _fits(kind, value):
        raise error(f"parameter {name!r} has a bad value", where=where, expected=_MEANING[kind], found=repr(value))
    return name, float32(value) if kind is float else value


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        return is_number(value)
    if kind is int:
        return type(value) is int and value in _INT64
    return isinstance(value, kind) and value != ""


def parse(setting: str) -> Parameter:
    """Read one "name=value", as given on a command line.

    Raises:
        UsageError: if it has no "=", or Ollama takes no such parameter or value.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise UsageError("a parameter is written name=value", found=setting)
    value: Any = text
    kind = TYPES.get(name)
    try:
        if kind in (int, float):
            value = kind(text)
    except ValueError:
        pass  # stays a text, which `checked` refuses with a full message
    if kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    return checked(name, value, where=setting)
