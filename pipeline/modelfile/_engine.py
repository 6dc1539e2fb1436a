"""What Ollama brings of its own: renderers and parsers, by name (model/renderers, model/parsers of 0.34.4).

A model that names one which an Ollama lacks is created, and then fails at each request; so only known names pass.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from pipeline.errors import UsageError

RENDERERS = frozenset({
    "qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5", "qwen3.8", "ornith", "cogito", "deepseek3.1",
    "olmo3", "olmo3.1", "olmo3-think", "olmo3-32b-think", "nemotron-3-nano", "nemotron-3.5-nano", "gemma4",
    "gemma4-small", "gemma4-large", "functiongemma", "glm-4.7", "glm-ocr", "lfm2", "lfm2-thinking", "laguna",
    "poolside-v1", "cohere", "glimmer",
})  # fmt: skip
PARSERS = frozenset({
    "qwen3", "qwen3-thinking", "qwen3.5", "ornith", "qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking",
    "ministral", "passthrough", "harmony", "cogito", "deepseek3", "olmo3", "olmo3-think", "nemotron-3-nano",
    "nemotron-3.5-nano", "functiongemma", "glm-4.7", "gemma4", "gemma4-no-thinking", "glm-ocr", "lfm2",
    "lfm2-thinking", "laguna", "poolside-v1", "cohere", "glimmer",
})  # fmt: skip
# golang.org/x/mod/semver, which the CLI asks: minor and patch may be left out, leading zeros may not stand.
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = r"(?:0|[1-9][0-9]*|[0-9A-Za-z-]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"v?({_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?)?)?)",
    re.ASCII,
)
_MAX_VERSION = 100


def known(kind: str, name: str, names: Collection[str]) -> str:
    """Return *name*, which must be one of *names*.

    Raises:
        UsageError: if Ollama has no such *kind* ("renderer", "parser").
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"Ollama has no such {kind}",
        where=kind,
        expected=", ".join(sorted(names)),
        found=repr(name)[:80],
        hint=f"did you mean {near[0]}?" if near else "leave it out: Ollama then uses the checkpoint's own template",
    )


def version(text: str) -> str:
    """Return a version as Ollama stores it, without a "v" in front.

    Raises:
        UsageError: if it is no semantic version.
    """
    found = _VERSION.fullmatch(text) if len(text) <= _MAX_VERSION else None
    if found is None:
        raise UsageError("not a version of Ollama", where="requires", expected="such as 0.34.0", found=repr(text)[:80])
    return found[1]
