"""Architectures as literals, one file each; `match` finds the one a config.json names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline import discover
from pipeline.arch._base import Arch, Key, Literal, Row, pattern
from pipeline.arch._config import MAX_EXPERTS, MAX_LAYERS, ModelConfig
from pipeline.arch._map import HEAD, HEADS, Mapped, MappedTensors, map_tensors, with_padding
from pipeline.arch._notes import dynamic_scaling
from pipeline.arch._rope import check_rope
from pipeline.errors import FormatError, PipelineError, UnsupportedError

__all__ = [
    "HEAD",
    "HEADS",
    "MAX_EXPERTS",
    "MAX_LAYERS",
    "Arch",
    "Key",
    "Literal",
    "Mapped",
    "MappedTensors",
    "ModelConfig",
    "Row",
    "archs",
    "by_class",
    "map_tensors",
    "match",
    "notes",
    "pattern",
    "with_padding",
]


# Heads on top of a language model or an encoder that say neither text nor a vector.
_SCORES = ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")


@cache
def archs() -> dict[str, Arch]:
    """Return all architectures by name."""
    return discover.load("pipeline.arch", "ARCH")


@cache
def by_class() -> dict[str, Arch]:
    """Return all architectures by the class names of config.json; two files may not claim one class."""
    table: dict[str, Arch] = {}
    for arch in archs().values():
        for name in arch.classes:
            if name in table:
                raise PipelineError(f"architectures {table[name].name!r} and {arch.name!r} both claim {name!r}")
            table[name] = arch
    return table


def match(config: Mapping[str, Any]) -> Arch:
    """Find the architecture that config.json's "architectures" names, and check what the engine would ignore.

    Raises:
        UnsupportedError: if it is unknown, or a setting changes the computation in a way that llama.cpp does not do.
        FormatError: if "architectures" is missing or of another form.
    """
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1 or not isinstance(classes[0], str):
        raise FormatError(
            "the architecture is not named",
            where='config.json, key "architectures"',
            expected='a list of one class name, such as ["LlamaForCausalLM"]',
            found=repr(classes)[:80],
        )
    arch = by_class().get(classes[0])
    if arch is None and classes[0].endswith(_SCORES):
        raise UnsupportedError(
            f"{classes[0]} gives scores (a reranker or a classifier), and Ollama has no request for them",
            where='config.json, key "architectures"',
            expected="a model that writes text, or makes vectors",
            hint="take an embedding model; llama.cpp itself serves rerankers (llama-server --reranking)",
        )
    if arch is None:
        close = difflib.get_close_matches(classes[0], by_class(), n=1)
        raise UnsupportedError(
            f"architecture {classes[0]!r} is not supported",
            where='config.json, key "architectures"',
            expected=f"one of {', '.join(sorted(by_class()))}",
            found=repr(classes[0])[:80],
            hint=f"the closest is {close[0]}" if close else None,
        )
    _check(arch, arch.config(config))
    _check_precision(arch, config)
    return arch


def notes(arch: Arch, config: ModelConfig) -> tuple[str, ...]:
    """Say what the engine does otherwise, and a user should know."""
    return (*dynamic_scaling(config), *arch.notes(config))


def _check(arch: Arch, config: ModelConfig) -> None:
    for key, allowed in arch.expect.items():
        found = config.raw.get(key)
        values = allowed(config) if callable(allowed) else allowed
        if found is not None and found not in values:
            raise UnsupportedError(
                f"llama.cpp computes {arch.gguf!r} in another way",
                where=f"config.json, key {key!r}",
                expected=" or ".join(map(repr, values)),
                found=repr(found)[:80],
            )
    check_rope(config, arch.name, arch.ropes)


def _check_precision(arch: Arch, config: Mapping[str, Any]) -> None:
    packing = config.get("quantization_config")
    if packing and not (isinstance(packing, dict) and packing.get("quant_method") in arch.packed):
        raise UnsupportedError(
            "the weights are packed by another quantizer",
            where='config.json, key "quantization_config"',
            expected="BF16, F16 or F32 weights",
            found=str(packing)[:80],
            hint="take the original checkpoint that this one was made from",
        )
