"""A LoRA adapter merged on the way gives the bytes of a checkpoint that was merged before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline import flow, writing
from pipeline.blueprint import from_checkpoint
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.errors import PipelineError
from pipeline.plan import make_plan
from pipeline.progress import Reporter
from pipeline.source import resolve
from pipeline.tokenizer import read_tokenizer

QUIET = Reporter(quiet=True)
KINDS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "c_attn", "c_fc")


@pytest.fixture(scope="module")
def adapters(oracle: Callable[[str], ModuleType]) -> Any:
    """The module that writes adapters."""
    return oracle("adapters")


def _weights(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with TensorReader() as reader:
        for name, tensor in open_checkpoint(folder).tensors.items():
            raw = np.empty(tensor.n_bytes, np.uint8)
            reader.read_bytes(tensor, 0, raw)
            arrays[name] = raw.view(KINDS[tensor.dtype]).reshape(tensor.shape).copy()
    return arrays


@pytest.fixture(scope="module", params=["demo", "llama3", "gpt2"])
def merged(request: pytest.FixtureRequest, adapters: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, an adapter for it, and the checkpoint that merging by hand gives, in a folder of the same name."""
    root = Path(__file__).parent.parent.parent
    base = root / "models" / "demo" if request.param == "demo" else root / "tests" / "fixtures" / "arch" / request.param
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(3)
    weights, tensors = _weights(base), {}
    is_turned = request.param == "gpt2"  # its matrices are stored (in, out)
    for name in [name for name in weights if name.endswith(tuple(f"{t}.weight" for t in TARGETS))]:
        n_out, n_in = weights[name].T.shape if is_turned else weights[name].shape
        a = rng.normal(size=(3, n_in)).astype(np.float32)
        b = (0.01 * rng.normal(size=(n_out, 3))).astype(np.float32)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        weights[name] = adapters.merge(weights[name], *((a.T, b.T) if is_turned else (b, a)), 6 / 3)
    adapter = adapters.save_adapter(folder / "tuned", tensors, r=3, lora_alpha=6, fan_in_fan_out=is_turned)
    by_hand = folder / f"{base.name}-tuned"
    shutil.copytree(base, by_hand, ignore=shutil.ignore_patterns("*.safetensors", "qa.jsonl", "*.npz"))
    adapters.save_safetensors(by_hand / "model.safetensors", weights)
    return base, adapter, by_hand


def test_same_bytes(merged: Any, tmp_path: Path) -> None:
    """Permuted heads and all: the file is that of the merged checkpoint, whatever the number of threads."""
    base, adapter, by_hand = merged
    expected = flow.convert(str(by_hand), tmp_path / "a.gguf", "auto", QUIET).files[0][1]
    for threads in (1, 3):
        found = flow.convert(str(base), tmp_path / "b.gguf", "auto", QUIET, threads, adapter=adapter).files[0][1]
        assert found == expected


def test_facts_of_a_repository(merged: Any) -> None:
    """With an adapter the repository is the base model, not the model."""
    base, adapter, _ = merged
    source = replace(resolve(str(base)), repository="org/some-model", commit="0" * 40)
    checkpoint = open_checkpoint(base)
    tokenizer = read_tokenizer(base, dict(checkpoint.text_config()))
    for one, expected in (
        (source, {"general.name": "Some Model", "general.source.repo_url": "https://huggingface.co/org/some-model"}),
        (
            replace(source, adapter=adapter),
            {
                "general.base_model.count": 1,
                "general.base_model.0.name": "Some Model",
                "general.base_model.0.repo_url": "https://huggingface.co/org/some-model",
            },
        ),
    ):
        metadata = from_checkpoint(checkpoint, tokenizer, one).metadata
        keys = {
            kv.key: kv.value for kv in metadata if kv.key.startswith(("general.name", "general.source", "general.base"))
        }
        assert keys == expected


@pytest.mark.native
def test_publish(merged: Any, cli: Any, tmp_path: Path) -> None:
    """`publish --adapter` publishes under a name of its own what the merged checkpoint quantizes to."""
    base, adapter, by_hand = merged
    model = "demo" if base.name == "demo" else base
    quants = ("--quant", "Q8_0,Q4_0")
    done = cli("publish", model, "--adapter", adapter, *quants, "--json", GGUF_PIPELINE_STORE=str(tmp_path / "s"))
    report = json.loads(done.stdout)
    assert [file["name"].rpartition("/")[2] for file in report["files"]] == [
        f"{base.name}-tuned:Q8_0", f"{base.name}-tuned:Q4_0",
    ]  # fmt: skip
    assert any(note.startswith("adapter tuned: ") for note in report["notes"])
    assert report["source"]["adapter"] == str(adapter)
    assert not [check for check in report["checks"] if check["state"] == "different"]
    for file in report["files"]:
        with flow.prepare(str(by_hand), QUIET) as prepared:
            writing.write([make_plan(prepared.blueprint, file["recipe"])], [tmp_path / "x.gguf"], QUIET)
        blob = tmp_path / "s" / "blobs" / file["digest"].replace(":", "-")
        assert blob.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    plan = json.loads(cli("plan", model, "--adapter", adapter, "--quant", "Q8_0", "--json").stdout)
    assert plan[0]["model"] == f"{base.name}-tuned"


def test_adapters_that_would_be_lost(adapters: Any, demo: Path, tmp_path: Path) -> None:
    """An adapter for a head that is tied, and one for a GGUF, are refused before anything is written."""
    config = json.loads((demo / "config.json").read_text())
    assert config["tie_word_embeddings"]
    head = np.zeros((config["vocab_size"], config["hidden_size"]), np.float32)
    adapter = adapters.save_adapter(tmp_path / "a", {"lm_head.weight": head})
    with pytest.raises(PipelineError, match="head is its embedding matrix"):
        flow.convert(str(demo), tmp_path / "x.gguf", "auto", QUIET, adapter=adapter)
    own_head = tmp_path / "own"
    shutil.copytree(demo, own_head)
    weights = _weights(demo)
    adapters.save_safetensors(own_head / "model.safetensors", weights | {"lm_head.weight": head.astype(KINDS["BF16"])})
    with pytest.raises(PipelineError, match="no place for"):
        flow.convert(str(own_head), tmp_path / "x.gguf", "auto", QUIET, adapter=adapter)
    assert not (tmp_path / "x.gguf").exists()
    flow.convert(str(demo), tmp_path / "x.gguf", "auto", QUIET)
    with (
        pytest.raises(PipelineError, match="not into a GGUF"),
        flow.prepare(str(tmp_path / "x.gguf"), QUIET, adapter=adapter),
    ):
        pass
