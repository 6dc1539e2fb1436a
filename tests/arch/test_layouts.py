"""One model in several layouts gives one file: experts apart or fused, alone or within a multimodal model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import arch as archs
from pipeline import flow
from pipeline.errors import FormatError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"


@pytest.fixture
def file_of(tmp_path: Path, silent_log: Any) -> Callable[[Path], bytes]:
    """Convert a checkpoint to BF16 and give the file's bytes; the log is emptied before."""

    def convert(folder: Path) -> bytes:
        silent_log.notes.clear()
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        flow.convert(str(folder), path, "BF16", silent_log)
        return path.read_bytes()

    return convert


def _stack(tensors: dict[str, Any], names: list[str]) -> Any:
    kind = type(tensors[names[0]])
    return kind(tensors[names[0]].dtype, np.stack([tensors.pop(name).data for name in names]))


def _fuse_experts(block: str, gate: str, up: str, down: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Put experts as transformers 5 holds them: gate above up in one tensor, all experts in two tensors."""

    def change(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        for bid in range(2):
            old, new = f"model.layers.{bid}.{block}", f"model.layers.{bid}.mlp"
            parts = {
                name: _stack(tensors, [f"{old}.experts.{x}.{name}.weight" for x in range(4)])
                for name in (gate, up, down)
            }
            parts[gate].data = np.concatenate([parts[gate].data, parts[up].data], axis=1)
            tensors[f"{new}.experts.gate_up_proj"] = parts[gate]
            tensors[f"{new}.experts.down_proj"] = parts[down]
            tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")

    return change


MOE = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}


@pytest.mark.parametrize("name", MOE)
def test_fused_experts_give_the_same_file(name: str, edited: Any, file_of: Any) -> None:
    """Experts in two tensors, as transformers 5 holds them, give the bytes of experts in tensors of their own."""
    assert file_of(edited(name, _fuse_experts(*MOE[name]))) == file_of(FIXTURES / name)


@pytest.mark.parametrize("name", MOE)
def test_experts_in_both_layouts_are_refused(name: str, edited: Any, file_of: Any) -> None:
    """A checkpoint with fused experts beside the old ones is refused, and both are named."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        before = dict(tensors)
        _fuse_experts(*MOE[name])(config, tensors)
        tensors.update(before)

    with pytest.raises(FormatError, match="in two layouts"):
        file_of(edited(name, change))


@pytest.mark.parametrize("name", MOE)
def test_a_missing_expert_is_named(name: str, edited: Any, file_of: Any) -> None:
    """One expert less is an error that says which."""
    block, _, up, _ = MOE[name]
    lost = f"model.layers.1.{block}.experts.2.{up}.weight"
    with pytest.raises(FormatError, match=re.escape(lost)):
        file_of(edited(name, lambda _config, tensors: tensors.pop(lost)))


def _wrap(config: dict[str, Any]) -> None:
    inner = dict(config)
    config.clear()
    config["text_config"] = {k: v for k, v in inner.items() if k not in ("architectures", "tie_word_embeddings")}
    config["vision_config"] = {"hidden_size": 8}
    config["architectures"] = ["Gemma3ForConditionalGeneration"]


@pytest.mark.parametrize("version", [4, 5])
def test_the_text_part_of_gemma3_gives_the_same_file(version: int, edited: Any, file_of: Any, silent_log: Any) -> None:
    """Within the multimodal wrapper, in the old and new naming, the language model is the same file; vision is said."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        _wrap(config)
        outer = "" if version == 4 else "model."
        text = "language_model.model." if version == 4 else "model.language_model."
        for name in list(tensors):
            tensors[text + name.removeprefix("model.")] = tensors.pop(name)
        norm = tensors[f"{text}norm.weight"]
        for part in (
            "vision_tower.vision_model.post_layernorm.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ):
            tensors[outer + part] = norm

    alone = file_of(FIXTURES / "gemma3")
    assert file_of(edited("gemma3", change)) == alone
    assert [note for note in silent_log.notes if note.startswith("vision left out: ")]


def test_published_gemma3_leaves_out_what_the_class_has_by_itself() -> None:
    """Keys that the published multimodal config.json lacks are those of Gemma3TextConfig."""
    raw = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    arch = archs.match(raw)
    found = {key.name: key.get(arch.config(raw)) for key in arch.keys}
    assert {name: value for name, value in found.items() if value is not None} == {
        "block_count": 34,
        "context_length": 131072,
        "embedding_length": 2560,
        "feed_forward_length": 10240,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.sliding_window": 1024,
    }


@pytest.mark.parametrize("bad", [np.float32([1, 2]), np.float32([np.nan])], ids=["two numbers", "NaN"])
def test_a_learned_number_that_is_none_is_refused(bad: np.ndarray, edited: Any, file_of: Any) -> None:
    """A metadata value that the checkpoint has as a tensor must be one finite number."""
    name = "model.layers.1.mlp.act_fn.alpha_p"

    def change(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name].data = bad.view(np.uint8).reshape(len(bad), 4)

    with pytest.raises(FormatError, match=re.escape(name)):
        file_of(edited("apertus", change))
