"""One model in several layouts gives one file: experts apart or fused, alone or within a multimodal model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import arch as archs
from pipeline import flow, gguf
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.errors import FormatError, UnsupportedError

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
        for bid in sorted({name.split(".")[2] for name in tensors if f".{block}.experts." in name}):
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
    "deepseek_v2": ("mlp", "gate_proj", "up_proj", "down_proj"),
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


def _renamed(tensors: dict[str, Any], *pairs: tuple[str, str]) -> None:
    """Replace parts of all names."""
    for name in list(tensors):
        new = name
        for old, other in pairs:
            new = new.replace(old, other)
        tensors[new] = tensors.pop(name)


def _bare_gpt2(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
    _renamed(tensors, ("transformer.", ""))
    tensors["h.0.attn.bias"] = tensors["h.0.attn.masked_bias"] = tensors["ln_f.weight"]
    tensors["lm_head.weight"] = tensors["wte.weight"]


def _old_bert(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["architectures"] = ["BertForMaskedLM"]
    _renamed(tensors, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for name in list(tensors):
        tensors[f"bert.{name}"] = tensors.pop(name)
    tensors["cls.predictions.bias"] = tensors["cls.seq_relationship.weight"] = tensors["bert.pooler.dense.bias"]


def _masked_roberta(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["architectures"] = ["RobertaForMaskedLM"]
    for name in list(tensors):
        tensors[f"roberta.{name}"] = tensors.pop(name)
    tensors["lm_head.dense.weight"] = tensors["lm_head.bias"] = tensors["roberta.pooler.dense.bias"]


def _masked_distilbert(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["architectures"] = ["DistilBertForMaskedLM"]
    for name in list(tensors):
        tensors[f"distilbert.{name}"] = tensors.pop(name)
    tensors["vocab_projector.weight"] = tensors["distilbert.embeddings.LayerNorm.bias"]


def _copied_t5(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["encoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
    bias = tensors["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = bias


def _mtp(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
    norm = tensors["model.norm.weight"]
    tensors["model.layers.3.enorm.weight"] = tensors["model.layers.3.mlp.experts.0.up_proj.weight"] = norm


SAME = {
    "gpt2": (_bare_gpt2, None),
    "bert": (_old_bert, "guesses of masked words and next sentences"),
    "roberta": (_masked_roberta, "guesses of masked words"),
    "distilbert": (_masked_distilbert, "guesses of masked words"),
    "t5": (_copied_t5, None),
    "deepseek_v3": (_mtp, "layers that guess further tokens"),
}


@pytest.mark.parametrize("name", SAME)
def test_other_forms_of_a_family_give_the_same_file(name: str, edited: Any, file_of: Any, silent_log: Any) -> None:
    """Names without or with a prefix, old spellings, copies and parts for training change nothing; losses are said."""
    change, ability = SAME[name]
    alone = file_of(FIXTURES / name)
    folder = edited(name, change)
    for path in (FIXTURES / name).glob("*/config.json"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    assert file_of(folder) == alone
    assert [note for note in silent_log.notes if ability and note.startswith(ability)] == silent_log.notes[-1:] * bool(
        ability
    )


@pytest.mark.parametrize("n_heads_kv", [1, 4])
def test_older_falcon_has_one_key_head_or_one_for_each(n_heads_kv: int, edited: Any) -> None:
    """Before the new decoder, with one norm: queries, then the key, then the value, or in turn for each head."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(new_decoder_architecture=False, multi_query=n_heads_kv == 1)
        for name in list(tensors):
            if "ln_attn" in name:
                del tensors[name]
            elif "query_key_value" in name:
                rows = np.arange((4 + 2 * n_heads_kv) * 16 * 64, dtype=np.float32).reshape(-1, 64)
                tensors[name].data = rows.view(np.uint8).reshape(len(rows), 64, 4)
        _renamed(tensors, ("ln_mlp", "input_layernorm"))

    checkpoint = open_checkpoint(edited("falcon", change))
    arch = archs.match(checkpoint.config)
    config = arch.config(checkpoint.config)
    assert {key.name: key.get(config) for key in arch.keys}["attention.head_count_kv"] == n_heads_kv
    mapped = {t.name: t.view for t in archs.map_tensors(arch, config, checkpoint.tensors).tensors}
    assert "blk.0.attn_norm_2.weight" not in mapped
    view = mapped["blk.0.attn_qkv.weight"]
    out = np.empty((view.shape[0], 256), np.uint8)
    with TensorReader() as reader:
        view.read(reader, np.arange(view.shape[0]), slice(None), out)
    source = np.arange(out.size // 4, dtype=np.float32).reshape(n_heads_kv, -1, 16, 64)
    expected = np.concatenate(
        [source[:, :-2].reshape(-1, 64), source[:, -2].reshape(-1, 64), source[:, -1].reshape(-1, 64)]
    )
    assert np.array_equal(expected, out.view(np.float32))


def test_a_broken_scale_is_refused(edited: Any, file_of: Any) -> None:
    """A block whose scale stands for NaN is an error that names the tensor."""

    def change(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        scales = tensors["model.layers.2.mlp.experts.down_proj_scales"]
        scales.data = scales.data.copy()
        scales.data[1, 5, 1] = 255

    with pytest.raises(FormatError, match=r"layers\.2\.mlp\.experts\.down_proj.*NaN[^~]*row 69, column 32 of"):
        file_of(edited("gpt_oss", change))


def test_the_head_of_old_t5_is_scaled(file_of: Any, tmp_path: Path, silent_log: Any) -> None:
    """The added head is the embedding divided by the root of its width."""
    flow.convert(str(FIXTURES / "t5_v10"), tmp_path / "t5.gguf", "F32", silent_log)
    file = gguf.read_gguf(tmp_path / "t5.gguf")
    values = {}
    for tensor in file.tensors:
        if tensor.name in ("output.weight", "token_embd.weight"):
            data = np.empty(tensor.n_bytes, np.uint8)
            file.read_tensor_bytes(tensor, 0, data)
            values[tensor.name] = data.view(np.float32)
    assert np.array_equal(values["token_embd.weight"] / 8, values["output.weight"])


def test_deepseek_without_a_query_latent(edited: Any) -> None:
    """The lite sizes have one query matrix instead of two."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["q_lora_rank"] = None
        for name in [name for name in tensors if ".q_a_" in name]:
            del tensors[name]
        for name in [name for name in tensors if ".q_b_proj." in name]:
            del tensors[name]
            tensors[name.replace("q_b_proj", "q_proj")] = tensors["model.layers.0.mlp.gate_proj.weight"]

    checkpoint = open_checkpoint(edited("deepseek_v2", change))
    arch = archs.match(checkpoint.config)
    config = arch.config(checkpoint.config)
    names = {t.name for t in archs.map_tensors(arch, config, checkpoint.tensors).tensors}
    assert "blk.2.attn_q.weight" in names
    assert not [name for name in names if "attn_q_" in name]
    assert {key.name: key.get(config) for key in arch.keys}["attention.q_lora_rank"] is None


@pytest.mark.parametrize(("mscale", "of_all"), [(1.0, 0.7), (1.0, 0.0), (1.0, None)])
def test_deepseek_with_two_scales_of_yarn_is_refused(mscale: float, of_all: float | None) -> None:
    """llama.cpp has one mscale for rotation and attention; other pairs would give another model."""
    raw = json.loads((FIXTURES / "deepseek_v3" / "config.json").read_text(encoding="utf-8"))
    raw["rope_scaling"].update(mscale=mscale, mscale_all_dim=of_all)
    arch = archs.match(raw)
    with pytest.raises(UnsupportedError, match="mscale"):
        [key.get(arch.config(raw)) for key in arch.keys]


@pytest.mark.parametrize(("name", "method"), [("gpt_oss", "gptq"), ("gpt_oss", None), ("llama3", "mxfp4")])
def test_other_packings_are_refused(name: str, method: str | None) -> None:
    """Only the packing that the rows of a family read is taken."""
    raw = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = {"quant_method": method, "bits": 4}
    with pytest.raises(UnsupportedError, match="packed by another quantizer"):
        archs.match(raw)
