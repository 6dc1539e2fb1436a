"""Sampling defaults of generation_config.json, as PARAMETERs of Ollama and as `general.sampling.*` keys of the GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import FormatError
from pipeline.modelfile import _parameters
from pipeline.types import KV, ValueType, f32, string

_FILE = "generation_config.json"
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
# In the order in which the converter writes them, with the keys of generation_config.json it looks for, best first.
_METADATA: tuple[tuple[str, ValueType, tuple[str, ...]], ...] = (
    ("sequence", ValueType.STRING, ("sequence",)),
    ("top_k", ValueType.INT32, ("top_k",)),
    ("top_p", ValueType.FLOAT32, ("top_p",)),
    ("min_p", ValueType.FLOAT32, ("min_p",)),
    ("xtc_probability", ValueType.FLOAT32, ("xtc_probability",)),
    ("xtc_threshold", ValueType.FLOAT32, ("xtc_threshold",)),
    ("temp", ValueType.FLOAT32, ("temperature",)),
    ("penalty_last_n", ValueType.INT32, ("penalty_last_n",)),
    ("penalty_repeat", ValueType.FLOAT32, ("penalty_repeat", "repetition_penalty")),
    ("mirostat", ValueType.INT32, ("mirostat",)),
    ("mirostat_tau", ValueType.FLOAT32, ("mirostat_tau",)),
    ("mirostat_eta", ValueType.FLOAT32, ("mirostat_eta",)),
)
_INT32 = range(-(2**31), 2**31)


def sampling_parameters(generation_config: Mapping[str, Any]) -> tuple[tuple[str, int | float | bool | str], ...]:
    """Give the PARAMETERs that say what *generation_config* says; `do_sample: false` is temperature 0.

    Keys that are null or absent give nothing, as do those that Ollama has no parameter for.

    Raises:
        FormatError: if a value has a wrong type.
    """
    do_sample = generation_config.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise _wrong("do_sample", "true or false", do_sample)
    pairs = []
    for key, name in _PARAMETERS.items():
        value = generation_config.get(key)
        if key == "temperature" and do_sample is False:
            value = 0
        if value is not None:
            pairs.append(_parameters.checked(name, value, where=f"{_FILE}, {key}", error=FormatError))
    return tuple(pairs)


def sampling_metadata(generation_config: Mapping[str, Any]) -> tuple[KV, ...]:
    """Give the `general.sampling.*` keys as llama.cpp's converter writes them (gguf-py's metadata.py).

    Like there, `do_sample` is not looked at, and a first key that is present but null hides the second.

    Raises:
        FormatError: if a value has a wrong type, which the converter would fail on too.
    """
    entries = []
    for name, kind, keys in _METADATA:
        key = next((k for k in keys if k in generation_config), None)
        if key is not None and generation_config[key] is not None:
            entries.append(_entry(f"general.sampling.{name}", kind, key, generation_config[key]))
    return tuple(entries)


def generation_config_of(metadata: Mapping[str, KV]) -> dict[str, Any]:
    """Give the generation_config.json that the `general.sampling.*` keys of a GGUF stand for.

    A float32 is written with the fewest digits that name it, so 0.6 is 0.6 again.
    """
    config: dict[str, Any] = {}
    for name, kind, keys in _METADATA:
        kv = metadata.get(f"general.sampling.{name}")
        if kv is not None and kv.type is kind:
            config[keys[-1]] = float(str(np.float32(kv.value))) if kind is ValueType.FLOAT32 else kv.value
    return config


def _entry(name: str, kind: ValueType, key: str, value: Any) -> KV:
    if kind is ValueType.FLOAT32 and _parameters.is_number(value):
        return f32(name, value)
    if kind is ValueType.INT32 and type(value) is int and value in _INT32:
        return KV(name, kind, value)
    if kind is ValueType.STRING and isinstance(value, str):
        return string(name, value)
    expected = {ValueType.FLOAT32: "a number", ValueType.INT32: "a 32-bit integer", ValueType.STRING: "a text"}
    raise _wrong(key, expected[kind], value)


def _wrong(key: str, expected: str, found: Any) -> FormatError:
    return FormatError(
        "a sampling default has a wrong type", where=f"{_FILE}, {key}", expected=expected, found=repr(found)
    )
