from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Checkpoint, TensorReader, merge_adapter, open_checkpoint
from pipeline.checkpoint.lora import add_product
from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.views import view_of

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(11)
Q, GATE, EMBED, HEAD = "model.layers.0.q_proj", "model.layers.0.gate", "model.embed", "lm_head"


def _normal(*shape: int, kind: Any = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(kind)


@pytest.fixture
def adapters(oracle: Callable[[str], ModuleType]) -> Any:
    """The module that writes adapters."""
    return oracle("adapters")


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """A small checkpoint."""
    return {
        f"{Q}.weight": _normal(6, 8, kind=BF16),
        f"{GATE}.weight": _normal(6, 8, kind=np.float16),
        f"{EMBED}.weight": _normal(10, 8),
        f"{HEAD}.weight": _normal(10, 8, kind=BF16),
        "model.norm.weight": _normal(8),
    }


@pytest.fixture
def checkpoint(weights: dict[str, np.ndarray], adapters: Any, tmp_path: Path) -> Checkpoint:
    """That checkpoint, opened."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    adapters.save_safetensors(folder / "model.safetensors", weights)
    return open_checkpoint(folder)


def _pair(module: str, n_out: int, n_in: int, r: int = 4, kind: Any = np.float32) -> dict[str, np.ndarray]:
    return {
        f"{module}.lora_A.weight": _normal(r, n_in, kind=kind),
        f"{module}.lora_B.weight": _normal(n_out, r, kind=kind),
    }


def _read(checkpoint: Checkpoint, name: str, rows: Any = None, columns: slice = slice(None)) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    kind = {"F32": np.float32, "F16": np.float16, "BF16": BF16}[tensor.dtype]
    rows = np.arange(tensor.shape[0]) if rows is None else np.array(rows)
    n_cols = len(range(*columns.indices(tensor.shape[1])))
    out = np.empty((len(rows), n_cols * np.dtype(kind).itemsize), np.uint8)
    with TensorReader() as reader:
        view_of(tensor).read(reader, rows, columns, out)
    return out.view(kind)


@pytest.mark.parametrize("kind", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_values(
    checkpoint: Checkpoint, weights: dict[str, np.ndarray], adapters: Any, tmp_path: Path, kind: Any, rslora: bool
) -> None:
    """Each value is the documented one, bit by bit, and near what float64 gives; other tensors stay as they are."""
    tensors = _pair(Q, 6, 8, kind=kind) | _pair(GATE, 6, 8, kind=kind)
    merged = merge_adapter(checkpoint, adapters.save_adapter(tmp_path / "a", tensors, use_rslora=rslora), "org/base")
    scale = 16 / (math.sqrt(4) if rslora else 4)
    for module in (Q, GATE):
        weight, a, b = (
            weights[f"{module}.weight"],
            tensors[f"{module}.lora_A.weight"],
            tensors[f"{module}.lora_B.weight"],
        )
        found = _read(merged, f"{module}.weight")
        assert found.dtype == weight.dtype
        np.testing.assert_array_equal(found, adapters.merge(weight, b, a, scale))
        exact = weight.astype(np.float64) + b.astype(np.float64) @ a.astype(np.float64) * scale
        step = 2.0**-8 if weight.dtype == BF16 else 2.0**-11
        np.testing.assert_allclose(found.astype(np.float64), exact, rtol=step * 1.01, atol=1e-5)
    assert merged.adapted == {f"{Q}.weight", f"{GATE}.weight"}
    assert merged.tensors["model.norm.weight"] is checkpoint.tensors["model.norm.weight"]
    assert merged.notes == ("adapter a: 2 matrices changed",)


def test_any_rows_and_columns(checkpoint: Checkpoint, adapters: Any, tmp_path: Path) -> None:
    """A tile of any rows in any order, and any band of columns, has the bits of the whole."""
    merged = merge_adapter(checkpoint, adapters.save_adapter(tmp_path / "a", _pair(Q, 6, 8)), "base")
    whole = _read(merged, f"{Q}.weight")
    for rows, columns in (([5, 0, 3], slice(None)), ([2], slice(3, 7)), ([1, 4], slice(0, 1))):
        np.testing.assert_array_equal(_read(merged, f"{Q}.weight", rows, columns), whole[rows, columns])


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
def test_blocks_do_not_show(n_rows: int, n_cols: int, rank: int) -> None:
    """Where the work is cut for the cache changes no bit."""
    rng = np.random.default_rng(n_rows)
    values = rng.normal(size=(n_rows, n_cols * 97)).astype(np.float32)
    left = rng.normal(size=(n_rows, rank)).astype(np.float32)
    right = rng.normal(size=(rank, n_cols * 97)).astype(np.float32)
    whole = values.copy()
    add_product(whole, left, right, 0.7)
    for first in range(0, n_rows, 7):
        add_product(values[first : first + 7], left[first : first + 7], right, 0.7)
    np.testing.assert_array_equal(values, whole)


def test_fan_in_fan_out_and_embeddings(
    checkpoint: Checkpoint, weights: dict[str, np.ndarray], adapters: Any, tmp_path: Path
) -> None:
    """Matrices stored (in, out), and embeddings always, take the transpose of B A."""
    turned = _pair(Q, 8, 6)
    merged = merge_adapter(checkpoint, adapters.save_adapter(tmp_path / "a", turned, fan_in_fan_out=True), "base")
    expected = adapters.merge(
        weights[f"{Q}.weight"], turned[f"{Q}.lora_A.weight"].T, turned[f"{Q}.lora_B.weight"].T, 4.0
    )
    np.testing.assert_array_equal(_read(merged, f"{Q}.weight"), expected)
    table = {f"{EMBED}.lora_embedding_A": _normal(4, 10), f"{EMBED}.lora_embedding_B": _normal(8, 4)}
    merged = merge_adapter(checkpoint, adapters.save_adapter(tmp_path / "b", table), "base")
    expected = adapters.merge(weights[f"{EMBED}.weight"], *(array.T for array in table.values()), 4.0)
    np.testing.assert_array_equal(_read(merged, f"{EMBED}.weight"), expected)


def test_patterns(checkpoint: Checkpoint, weights: dict[str, np.ndarray], adapters: Any, tmp_path: Path) -> None:
    """Ranks and alphas of single modules go by the end of their names."""
    tensors = _pair(Q, 6, 8, r=2) | _pair(GATE, 6, 8, r=4)
    config = {"rank_pattern": {"layers.0.q_proj": 2}, "alpha_pattern": {"gate": 6, "te": 99}}
    merged = merge_adapter(checkpoint, adapters.save_adapter(tmp_path / "a", tensors, **config), "base")
    for module, scale in ((Q, 16 / 2), (GATE, 6 / 4)):
        expected = adapters.merge(
            weights[f"{module}.weight"], tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"], scale
        )
        np.testing.assert_array_equal(_read(merged, f"{module}.weight"), expected)


def test_whole_tensors(checkpoint: Checkpoint, weights: dict[str, np.ndarray], adapters: Any, tmp_path: Path) -> None:
    """Modules to save replace the checkpoint's, in its type; one under a change of its own is changed after that."""
    head, embed = _normal(10, 8), _normal(10, 8)
    table = {f"{EMBED}.lora_embedding_A": _normal(4, 10), f"{EMBED}.lora_embedding_B": _normal(8, 4)}
    tensors = {f"{HEAD}.weight": head, f"{EMBED}.base_layer.weight": embed} | table
    folder = adapters.save_adapter(tmp_path / "a", tensors, modules_to_save=["lm_head"])
    merged = merge_adapter(checkpoint, folder, "base")
    np.testing.assert_array_equal(_read(merged, f"{HEAD}.weight"), head.astype(BF16))
    expected = adapters.merge(embed, *(array.T for array in table.values()), 4.0)
    np.testing.assert_array_equal(_read(merged, f"{EMBED}.weight"), expected)
    assert merged.adapted == {f"{HEAD}.weight", f"{EMBED}.weight"}
    assert merged.notes[0] == "adapter a: 1 matrices changed, 1 tensors replaced"
    same = adapters.save_adapter(tmp_path / "b", {f"{HEAD}.weight": head.astype(BF16)})
    np.testing.assert_array_equal(_read(merge_adapter(checkpoint, same, "base"), f"{HEAD}.weight"), head.astype(BF16))


def test_inner_names(adapters: Any, tmp_path: Path) -> None:
    """A checkpoint of the inner model alone lacks the first part of the names, as GPT-2's does."""
    folder = tmp_path / "gpt"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    adapters.save_safetensors(folder / "model.safetensors", {"h.0.c_attn.weight": _normal(6, 8)})
    adapter = adapters.save_adapter(tmp_path / "a", _pair("transformer.h.0.c_attn", 6, 8))
    assert merge_adapter(open_checkpoint(folder), adapter, "base").adapted == {"h.0.c_attn.weight"}


def test_bin_weights(
    checkpoint: Checkpoint, adapters: Any, oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adapter_model.bin, PEFT's older form, gives the same values."""
    tensors = _pair(Q, 6, 8)
    folder = adapters.save_adapter(tmp_path / "a", tensors)
    expected = _read(merge_adapter(checkpoint, folder, "base"), f"{Q}.weight")
    (folder / "adapter_model.safetensors").unlink()
    state = {f"base_model.model.{name}": array for name, array in tensors.items()}
    oracle("torch_save").FakeTorch(monkeypatch).save(folder / "adapter_model.bin", state)
    np.testing.assert_array_equal(_read(merge_adapter(checkpoint, folder, "base"), f"{Q}.weight"), expected)


def test_notes(checkpoint: Checkpoint, adapters: Any, tmp_path: Path) -> None:
    """Another base model, and a chat template that is not used, are said."""
    folder = adapters.save_adapter(tmp_path / "a", _pair(Q, 6, 8))
    assert len(merge_adapter(checkpoint, folder, "someone/BASE").notes) == 1
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    notes = merge_adapter(checkpoint, folder, "org/other").notes
    assert notes[1] == "the adapter was trained on org/base; it is merged into org/other"
    assert "chat template" in notes[2]
    (checkpoint.folder / "chat_template.jinja").write_text("x")
    assert len(merge_adapter(checkpoint, folder, "org/base").notes) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "no LoRA adapter"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": {"on": True}}, "something_new"),
        ({"rank_pattern": {"^model.(a+)+$": 4}}, "regular expression"),
    ],
)
def test_kinds_that_are_not_merged(
    checkpoint: Checkpoint, adapters: Any, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """What is not plain LoRA, known or not yet, is refused by name."""
    folder = adapters.save_adapter(tmp_path / "a", _pair(Q, 6, 8), **config)
    with pytest.raises(UnsupportedError, match=message):
        merge_adapter(checkpoint, folder, "base")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 8}, "rank is not that of its config"),
        ({"r": 0}, "no number"),
        ({"r": True}, "no number"),
        ({"lora_alpha": "16"}, "no number"),
        ({"lora_alpha": None}, "no number"),
        ({"rank_pattern": [1]}, "not an object"),
        ({"use_rslora": "yes"}, "neither true nor false"),
        ({"fan_in_fan_out": True}, "does not fit"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_configs_that_contradict(
    checkpoint: Checkpoint, adapters: Any, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """A config that says something else than the tensors, or nothing sensible, is an error."""
    folder = adapters.save_adapter(tmp_path / "a", _pair(Q, 6, 8), **config)
    with pytest.raises(FormatError, match=message):
        merge_adapter(checkpoint, folder, "base")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_pair("model.layers.9.q_proj", 6, 8), "does not have"),
        (_pair(Q, 6, 7), "does not fit"),
        (_pair(Q, 5, 8), "does not fit"),
        ({f"{Q}.lora_A.weight": _normal(4, 8)}, "not whole"),
        ({f"{Q}.lora_A.weight": _normal(4, 8), f"{Q}.lora_B.weight": _normal(6, 3)}, "do not fit each other"),
        ({f"{Q}.lora_A.weight": _normal(4), f"{Q}.lora_B.weight": _normal(6, 4)}, "do not fit each other"),
        (_pair(Q, 6, 8) | {f"{Q}.lora_magnitude_vector": _normal(6)}, "no part of plain LoRA"),
        (_pair(Q, 6, 8) | {f"{Q}.lora_B.bias": _normal(6)}, "no part of plain LoRA"),
        ({"thing": _normal(4)}, "no part of plain LoRA"),
        ({f"{HEAD}.weight": _normal(12, 8)}, "same vocabulary"),
        ({"other.weight": _normal(2, 2)}, "does not have"),
        (_pair(Q, 6, 8, kind=np.float64), "cannot be merged in this type"),
    ],
)
def test_tensors_that_do_not_fit(
    checkpoint: Checkpoint, adapters: Any, tmp_path: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    """Names, pairs, shapes and types are checked before a weight is read."""
    folder = adapters.save_adapter(tmp_path / "a", tensors)
    with pytest.raises(InputError, match=message):
        merge_adapter(checkpoint, folder, "base")


def test_foreign_names(checkpoint: Checkpoint, adapters: Any, tmp_path: Path) -> None:
    """A tensor without PEFT's prefix, as other tools write them, is refused."""
    folder = adapters.save_adapter(tmp_path / "a", {})
    adapters.save_safetensors(folder / "adapter_model.safetensors", _pair(Q, 6, 8))
    with pytest.raises(UnsupportedError, match=r"base_model\.model"):
        merge_adapter(checkpoint, folder, "base")


def test_folders_that_hold_none(checkpoint: Checkpoint, adapters: Any, tmp_path: Path) -> None:
    """No config, no weights, and no tensors are told apart."""
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        merge_adapter(checkpoint, tmp_path, "base")
    folder = adapters.save_adapter(tmp_path / "a", {})
    with pytest.raises(FormatError, match="holds no tensor"):
        merge_adapter(checkpoint, folder, "base")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match="holds no weights"):
        merge_adapter(checkpoint, folder, "base")
    (folder / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(FormatError, match="not an object"):
        merge_adapter(checkpoint, folder, "base")
