"""Rotary scalings: llama.cpp computes from our file what transformers' formulas say, and the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline import arch as archs
from pipeline import flow
from pipeline.errors import FormatError, UnsupportedError

FIXTURE = Path(__file__).parent.parent / "fixtures" / "arch" / "mistral"
MAX_KL = 1e-9

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.5,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
}


def _values(raw: Any) -> np.ndarray:
    kind = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[raw.dtype]
    return np.ascontiguousarray(raw.data).view(kind).reshape(raw.shape).astype(np.float64)


@pytest.fixture(scope="module")
def numpy_llama(oracle: Callable[[str], Any]) -> Any:
    """The forward pass in NumPy."""
    return oracle("numpy_llama")


@pytest.mark.native
@pytest.mark.parametrize("kind", SCALINGS)
def test_logits_of_every_scaling(
    kind: str, edited: Any, silent_log: Any, libllama: Any, reference: Any, numpy_llama: Any, tmp_path: Path
) -> None:
    """llama.cpp's logits of our file are those of the formulas, for each kind that llama's architecture does."""
    kept: dict[str, Any] = {}

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(rope_scaling=SCALINGS[kind], rope_theta=10000.0, architectures=["LlamaForCausalLM"])
        kept.update(config=config, weights={name: _values(raw) for name, raw in tensors.items()})

    path = tmp_path / "scaled.gguf"
    flow.convert(str(edited("mistral", change)), path, "F32", silent_log)
    ids = np.load(FIXTURE / "reference.npz")["input_ids"]
    expected = np.stack([numpy_llama.logits(kept["config"], kept["weights"], row) for row in ids])
    assert reference.mean_kl(expected, libllama.logits(path, ids)) < MAX_KL


def test_the_formulas_are_those_of_transformers(numpy_llama: Any, edited: Any, reference: Any) -> None:
    """The forward pass in NumPy gives the logits that transformers gave."""
    kept: dict[str, Any] = {}

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        kept.update(config=config, weights={name: _values(raw) for name, raw in tensors.items()})

    edited("mistral", change)
    golden = np.load(FIXTURE / "reference.npz")
    ours = np.stack([numpy_llama.logits(kept["config"], kept["weights"], row) for row in golden["input_ids"]])
    assert reference.mean_kl(golden["logits"], ours) < MAX_KL


def _llama(**rope: Any) -> dict[str, Any]:
    return {**archs.archs()["llama"].example, "rope_scaling": rope}


def _made(key: archs.Key, config: archs.ModelConfig) -> Any:
    value = key.get(config)
    return None if value is None else key.make(key.name, value)


@pytest.mark.parametrize("key", ["beta_fast", "beta_slow"])
def test_another_range_of_yarn_is_refused(key: str) -> None:
    """llama.cpp ignores the range for most architectures, so one that differs from its own is refused."""
    fine = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    archs.match(_llama(**fine, beta_fast=32, beta_slow=1.0))
    with pytest.raises(UnsupportedError, match=key):
        archs.match(_llama(**fine, **{key: 7}))


@pytest.mark.parametrize("kind", ["longrope", "proportional"])
def test_a_scaling_that_the_engine_lacks_is_refused(kind: str) -> None:
    """Longrope is not in llama's architecture, and an unknown kind in none."""
    with pytest.raises(UnsupportedError, match=kind):
        archs.match(_llama(type=kind, factor=2.0))


@pytest.mark.parametrize(("original", "context"), [(None, 512), (256, 256)])
def test_dynamic_scaling_ends_the_context_where_it_would_begin(original: int | None, context: int) -> None:
    """The engine has no dynamic scaling, which changes nothing before the context's end; the rest is said."""
    given = {} if original is None else {"original_max_position_embeddings": original}
    raw = _llama(type="dynamic", factor=2.0, **given)
    arch = archs.match(raw)
    config = arch.config(raw)
    found = {made.key: made.value for key in arch.keys if (made := _made(key, config))}
    assert found["context_length"] == context
    assert not any(key.startswith("rope.scaling") for key in found)
    assert [f"{context} tokens" in note for note in archs.notes(arch, config)] == [True]


def test_dynamic_scaling_with_a_base_of_its_own_is_no_limit() -> None:
    """Hunyuan's "dynamic" changes the base once: it has the whole context, and there is nothing to say."""
    raw = {**archs.archs()["hunyuan_dense"].example, "rope_scaling": {"type": "dynamic", "alpha": 1000.0}}
    arch = archs.match(raw)
    assert archs.notes(arch, arch.config(raw)) == ()


def test_yarn_without_its_context_is_refused() -> None:
    """YaRN's factor means nothing without the context it scales."""
    config = _llama(rope_type="yarn", factor=4.0)
    arch = archs.match(config)
    with pytest.raises(FormatError, match="original_max_position_embeddings"):
        [key.get(arch.config(config)) for key in arch.keys]


def test_a_table_of_another_length_is_refused() -> None:
    """Longrope needs one factor for each rotary pair, in both tables."""
    folder = FIXTURE.parent / "phi3_longrope"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch = archs.match(config)
    for table in ("long_factor", "short_factor"):
        for wrong in ([1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + ["x"], [True] * 8):
            changed = {**config, "rope_scaling": {**config["rope_scaling"], table: wrong}}
            with pytest.raises(FormatError, match=table):
                arch.literals(arch.config(changed))


def test_the_older_name_of_longrope() -> None:
    """The first Phi-3 checkpoints call it "su", under the key "type"."""
    folder = FIXTURE.parent / "phi3_longrope"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scaling = {k: v for k, v in config["rope_scaling"].items() if k in ("long_factor", "short_factor")}
    older = {**config, "rope_scaling": {"type": "su", **scaling}}
    arch = archs.match(older)
    assert arch.literals(arch.config(older)) == arch.literals(arch.config(config))
    assert [k.get(arch.config(older)) for k in arch.keys] == [k.get(arch.config(config)) for k in arch.keys]
