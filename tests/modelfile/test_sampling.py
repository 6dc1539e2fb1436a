"""generation_config.json as PARAMETERs and as GGUF keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import FormatError
from pipeline.modelfile.sampling import sampling_metadata, sampling_parameters
from pipeline.types import ValueType

_ALL: dict[str, Any] = {
    "mirostat_eta": 0.1,
    "mirostat_tau": 5,
    "mirostat": 2,
    "repetition_penalty": 1.05,
    "penalty_last_n": 32,
    "temperature": 0.6,
    "xtc_threshold": 0.2,
    "xtc_probability": 0.5,
    "min_p": 0,
    "top_p": 0.95,
    "top_k": 20,
    "sequence": "top_k;temp",
    "do_sample": True,
}


def test_metadata_has_the_converters_order_and_types() -> None:
    """Every key that llama.cpp's converter takes is written, in its order and its types."""
    entries = sampling_metadata(_ALL)
    short = {ValueType.STRING: "s", ValueType.INT32: "i", ValueType.FLOAT32: "f"}
    assert [f"{e.key.removeprefix('general.sampling.')} {short[e.type]}" for e in entries] == [
        "sequence s",
        "top_k i",
        "top_p f",
        "min_p f",
        "xtc_probability f",
        "xtc_threshold f",
        "temp f",
        "penalty_last_n i",
        "penalty_repeat f",
        "mirostat i",
        "mirostat_tau f",
        "mirostat_eta f",
    ]
    assert {e.key: e.value for e in entries}["general.sampling.temp"] == float(np.float32(0.6))


def test_metadata_takes_values_as_they_are() -> None:
    """Like the converter: do_sample changes nothing, null is absent, and penalty_repeat hides repetition_penalty."""
    assert [e.key for e in sampling_metadata({"do_sample": False, "temperature": 0.7, "top_k": None})] == [
        "general.sampling.temp"
    ]
    assert sampling_metadata({"penalty_repeat": None, "repetition_penalty": 1.1}) == ()
    both = sampling_metadata({"penalty_repeat": 1.5, "repetition_penalty": 1.1})
    assert [e.value for e in both] == [1.5]
    assert sampling_metadata({"eos_token_id": 2}) == ()


def test_the_demos_metadata(demo: Path) -> None:
    """The demo is greedy: top_k 1 and a small temperature travel in its file."""
    config = json.loads((demo / "generation_config.json").read_text())
    assert [(e.key, e.value) for e in sampling_metadata(config)] == [
        ("general.sampling.top_k", 1),
        ("general.sampling.temp", float(np.float32(0.01))),
    ]


def test_parameters_have_ollamas_names() -> None:
    """What Ollama has a parameter for is said under Ollama's name; the rest is left out."""
    assert dict(sampling_parameters(_ALL | {"typical_p": 0.9, "top_h": 1})) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.0,
        "repeat_penalty": 1.05,
    }


@pytest.mark.parametrize(
    ("config", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": None}, None),
    ],
)
def test_no_sampling_is_temperature_zero(config: dict[str, Any], temperature: float | None) -> None:
    """Only an explicit do_sample: false makes a model greedy."""
    assert dict(sampling_parameters(config)).get("temperature") == temperature


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("top_k", 40.0),
        ("top_k", False),
        ("top_p", [0.9]),
    ],
)
def test_a_wrong_type_is_named(key: str, value: Any) -> None:
    """A value of a wrong type is refused both ways, with the file and the key."""
    for reader in (sampling_parameters, sampling_metadata):
        with pytest.raises(FormatError) as caught:
            reader({key: value})
        assert caught.value.where == f"generation_config.json, {key}"


@pytest.mark.parametrize(("key", "value"), [("sequence", 1), ("mirostat", 2**31), ("penalty_last_n", -(2**31) - 1)])
def test_a_key_of_the_converters_alone_is_checked_too(key: str, value: Any) -> None:
    """Texts must be texts, and 32-bit integers must fit."""
    with pytest.raises(FormatError, match=key):
        sampling_metadata({key: value})


def test_do_sample_is_true_or_false() -> None:
    """A do_sample that is neither is refused."""
    with pytest.raises(FormatError, match="do_sample"):
        sampling_parameters({"do_sample": "no"})
