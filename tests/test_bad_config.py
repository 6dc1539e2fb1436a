"""config.json with anything in it: a plan, or one of our errors that says what is wrong; never another exception."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import flow
from pipeline.arch import ModelConfig
from pipeline.blueprint import from_checkpoint
from pipeline.checkpoint import open_checkpoint
from pipeline.errors import FormatError, PipelineError
from pipeline.plan import make_plan
from pipeline.preview import describe_plans
from pipeline.types import Plan

FIXTURES = Path(__file__).parent / "fixtures" / "arch"
Planned = Callable[[str, dict[str, Any]], Plan]
MODELS = ("llama3", "qwen2", "gemma3", "mixtral", "phi3", "phi3_longrope")
MORE_KEYS = (
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "head_dim", "partial_rotary_factor",
    "original_max_position_embeddings", "layer_types", "text_config", "num_local_experts", "sliding_window",
    "quantization_config", "eos_token_id",
)  # fmt: skip
ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "mscale",
    "mscale_all_dim", "original_max_position_embeddings", "attention_factor", "long_factor", "short_factor",
    "full_attention", "sliding_attention", "partial_rotary_factor",
)  # fmt: skip

ODD_NUMBERS = (
    0, 1, -1, 2, 3, 7, 512, 2**31, 2**32, 2**63, 10**18, -(2**63), 10**390, 0.0, -0.5, 0.5, 1e-300, 1e39, 1e300, -1e300,
    math.nan, math.inf, -math.inf,
)  # fmt: skip
ODD_TEXTS = ("", "x", "linear", "yarn", "llama3", "longrope", "256")
odd_values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.sampled_from(ODD_TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROPE_KEYS), inner, max_size=4),
    max_leaves=8,
)


def _paths(value: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Name every key and element of *value*."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*start, key)
        yield from _paths(inner, (*start, key))


def _changed(config: dict[str, Any], changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    """Set each path to its value, where the changes before left something to set it in."""
    config = copy.deepcopy(config)
    for (*outer, last), value in changes:
        place: Any = config
        for key in outer:
            place = place[key] if _holds(place, key) else None
        if isinstance(place, dict) or _holds(place, last):
            place[last] = value
    return config


def _holds(place: Any, key: Any) -> bool:
    if isinstance(place, list):
        return isinstance(key, int) and key < len(place)
    return isinstance(place, dict) and key in place


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, silent_log: Any) -> Planned:
    """Plan a fixture's model under another config.json; no weight is read, nothing written."""

    def plan(name: str, config: dict[str, Any]) -> Plan:
        folder = tmp_path_factory.getbasetemp() / f"bad-config-{name}"
        if not folder.exists():
            folder.mkdir()
            for path in (FIXTURES / name).iterdir():
                if path.name != "config.json":
                    (folder / path.name).symlink_to(path)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with flow.prepare(str(folder), silent_log) as prepared:
            describe_plans(prepared, ["Q4_K_M"], 4096)
            return make_plan(prepared.blueprint, "Q4_K_M")

    return plan


def _config(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8")))


def _all_paths(config: dict[str, Any]) -> list[tuple[Any, ...]]:
    rope = [(outer, key) for outer in ("rope_scaling", "rope_parameters") for key in ROPE_KEYS]
    return [*_paths(config), *((key,) for key in MORE_KEYS), *rope]


@pytest.mark.parametrize("name", MODELS)
def test_any_value_anywhere_gives_a_plan_or_our_error(name: str, planned: Planned) -> None:
    """Types, NaN, huge and negative numbers, nesting: up to three wrong values at once."""
    config = _config(name)

    @given(st.lists(st.tuples(st.sampled_from(_all_paths(config)), odd_values), min_size=1, max_size=3))
    def check(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        with contextlib.suppress(PipelineError):
            plan = planned(name, _changed(config, changes))
            assert plan.file_bytes > plan.data_start > 0

    check()


@pytest.mark.parametrize("name", MODELS)
def test_one_wrong_number(name: str, silent_log: Any) -> None:
    """Each number of a config.json as another number: nothing but a plan or one of our errors comes of it."""
    with flow.prepare(str(FIXTURES / name), silent_log) as opened:
        prepared = opened
    whole = open_checkpoint(FIXTURES / name)
    config = _config(name)
    numbers = [path for path in _all_paths(config) if isinstance(_at(config, path), int | float)]
    for path in [*numbers, ("rope_theta",), ("head_dim",), ("original_max_position_embeddings",)]:
        for value in ODD_NUMBERS:
            checkpoint = replace(whole, config=_changed(config, [(path, value)]))
            with contextlib.suppress(PipelineError):
                plan = make_plan(from_checkpoint(checkpoint, prepared.tokenizer, prepared.source), "Q4_K_M")
                assert plan.file_bytes > plan.data_start > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_without_dimensions_is_named(name: str, silent_log: Any) -> None:
    """Each tensor in turn as a single number: refused by file and tensor."""
    with flow.prepare(str(FIXTURES / name), silent_log) as opened:
        prepared = opened
    whole = open_checkpoint(FIXTURES / name)
    tensors = whole.tensors
    for changed, tensor in tensors.items():
        scalar = replace(tensor, shape=(), n_bytes=tensor.n_bytes // math.prod(tensor.shape))
        checkpoint = replace(whole, tensors={**tensors, changed: scalar})
        with pytest.raises(FormatError) as caught:
            from_checkpoint(checkpoint, prepared.tokenizer, prepared.source)
        assert "safetensors, tensor " in str(caught.value)


def _at(config: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        config = config[key] if _holds(config, key) else None
    return config


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}  # type: ignore[dict-item]
REFUSED: dict[str, tuple[str, list[tuple[tuple[Any, ...], Any]], str]] = {
    "text as base": ("mixtral", [(("rope_parameters",), {"rope_theta": "10000"})], "'rope_theta'"),
    "list as base": ("qwen2", [(("rope_parameters",), {"rope_theta": [1e4]})], "'rope_theta'"),
    "text as base of a scaling": (
        "llama3",
        [(("rope_parameters",), None), (("rope_scaling",), {**ROPE, "rope_theta": "x"})],
        "'rope_theta'",
    ),
    "base too large": ("llama3", [(("rope_scaling",), {**ROPE, "rope_theta": 1e300})], "rope.freq_base"),
    "negative base": ("llama3", [(("rope_scaling",), {**ROPE, "rope_theta": -1e4})], "llama3 rope scaling"),
    "NaN": ("llama3", [(("rms_norm_eps",), math.nan)], "'rms_norm_eps'"),
    "infinite": ("qwen2", [(("rms_norm_eps",), math.inf)], "'rms_norm_eps'"),
    "beyond float32": ("mixtral", [(("rms_norm_eps",), 1e300)], "attention.layer_norm_rms_epsilon"),
    "huge whole number as number": ("qwen2", [(("rms_norm_eps",), 10**390)], "'rms_norm_eps'"),
    "too many layers": ("qwen2", [(("num_hidden_layers",), 513)], "'num_hidden_layers'"),
    "too many experts": ("mixtral", [(("num_local_experts",), 10**9)], "'num_experts'"),
    "huge head": ("llama3", [(("head_dim",), 10**12)], "'head_dim'"),
    "no context": (
        "phi3_longrope",
        [((outer, "original_max_position_embeddings"), 0) for outer in ("rope_scaling", "rope_parameters")]
        + [(("original_max_position_embeddings",), 0)],
        "'original_max_position_embeddings'",
    ),
    "divisor too large": ("phi3_longrope", [(("rope_scaling", "long_factor", 0), 1e300)], "long_factor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_error_names_the_key(case: str, planned: Planned) -> None:
    """A wrong value is refused by the name of its key in config.json."""
    name, changes, part = REFUSED[case]
    with pytest.raises(FormatError) as caught:
        planned(name, _changed(_config(name), changes))
    assert part in str(caught.value)
    assert "config.json" in str(caught.value)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, YARN),
        (LINEAR, {**LINEAR, "factor": 3.0}),
        (LINEAR, {"rope_type": "linear", "factor": 2.0}),  # transformers 5 would take the family's own base
        ({"full_attention": LINEAR, "sliding_attention": {"rope_theta": 1e4}}, {"factor": 8.0}),
    ],
)
def test_two_rotary_settings_that_differ_are_refused(parameters: dict[str, Any], scaling: dict[str, Any]) -> None:
    """The transformers 5 key and the older one may not contradict each other; the message names both."""
    with pytest.raises(FormatError, match=r"'rope_parameters' and 'rope_scaling'"):
        ModelConfig({"rope_parameters": parameters, "rope_scaling": scaling}).rope  # noqa: B018 - read for its error


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        (LINEAR, {"type": "linear", "factor": 2, "rope_theta": 10000}),
        (LINEAR, None),
        (LINEAR, {}),
        (None, LINEAR),
        ({"full_attention": LINEAR, "sliding_attention": {"rope_theta": 1e4}}, {"type": "linear", "factor": 2.0}),
    ],
)
def test_two_rotary_settings_that_agree_are_taken(
    parameters: dict[str, Any] | None, scaling: dict[str, Any] | None
) -> None:
    """Said twice, or once under either name, it is the same setting."""
    found = ModelConfig({"rope_parameters": parameters, "rope_scaling": scaling}).rope
    assert {key: found[key] for key in LINEAR} == LINEAR
