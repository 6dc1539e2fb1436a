"""Qwen3 with experts (30B-A3B, 235B-A22B): every block has them, their weights are normalized."""

from dataclasses import replace

from pipeline.arch._base import Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import EXPERTS as EXPERT_KEYS
from pipeline.arch._keys import whole
from pipeline.arch._rows import ATTENTION, EXPERTS, NORMS, OUTER, QK_NORMS
from pipeline.arch.qwen3 import ARCH as QWEN3
from pipeline.types import u32

ARCH = replace(
    QWEN3,
    name="qwen3_moe",
    gguf="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    keys=(*QWEN3.keys, *EXPERT_KEYS, Key("expert_feed_forward_length", whole("moe_intermediate_size"), u32)),
    rows=(*OUTER, *NORMS, *ATTENTION, *QK_NORMS, *EXPERTS),
    defaults={**QWEN3.defaults, "norm_topk_prob": False},
    expect={**QWEN3.expect, "norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    example=decoder(
        "Qwen3MoeForCausalLM",
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    ),
)
