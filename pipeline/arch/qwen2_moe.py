"""Qwen 1.5 and 2 with experts (A2.7B, 57B-A14B): routed experts, and a shared one with a gate."""

from dataclasses import replace

from pipeline.arch._base import Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import EXPERTS as EXPERT_KEYS
from pipeline.arch._keys import whole
from pipeline.arch._rows import ATTENTION, EXPERTS, NORMS, OUTER, QKV_BIASES, needed
from pipeline.arch.qwen2 import ARCH as QWEN2
from pipeline.types import Shape, u32

_SHARED = "model.layers.{bid}.mlp.shared_expert"


def _inner(config: ModelConfig) -> Shape:
    return (config.need(int, "shared_expert_intermediate_size"), config.width)


ARCH = replace(
    QWEN2,
    name="qwen2_moe",
    gguf="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    keys=(
        *QWEN2.keys,
        *EXPERT_KEYS,
        Key("expert_feed_forward_length", whole("moe_intermediate_size"), u32),
        Key("expert_shared_feed_forward_length", whole("shared_expert_intermediate_size"), u32),
    ),
    rows=(
        *OUTER,
        *NORMS,
        *ATTENTION,
        *needed(*QKV_BIASES),
        *EXPERTS,
        Row(f"{_SHARED}_gate.weight", "blk.{bid}.ffn_gate_inp_shexp.weight", shape=lambda config: (1, config.width)),
        Row(f"{_SHARED}.gate_proj.weight", "blk.{bid}.ffn_gate_shexp.weight", shape=_inner),
        Row(f"{_SHARED}.up_proj.weight", "blk.{bid}.ffn_up_shexp.weight", shape=_inner),
        Row(
            f"{_SHARED}.down_proj.weight", "blk.{bid}.ffn_down_shexp.weight", shape=lambda config: _inner(config)[::-1]
        ),
    ),
    defaults={**QWEN2.defaults, "norm_topk_prob": False},
    expect={
        **QWEN2.expect,
        "norm_topk_prob": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
        "tie_word_embeddings": (False,),
    },
    example=decoder(
        "Qwen2MoeForCausalLM",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
    ),
)
