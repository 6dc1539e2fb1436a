"""Mixtral: Mistral with experts, which llama.cpp has within the architecture "llama"."""

from dataclasses import replace

from pipeline.arch._example import decoder
from pipeline.arch._keys import EXPERTS
from pipeline.arch._rows import ATTENTION, NORMS, OUTER, ROUTER, experts, interleaved
from pipeline.arch.mistral import ARCH as MISTRAL

_OLD_ROUTER = replace(ROUTER, source="model.layers.{bid}.block_sparse_moe.gate.weight")

ARCH = replace(
    MISTRAL,
    name="mixtral",
    classes=("MixtralForCausalLM",),
    keys=(*MISTRAL.keys, *EXPERTS),
    rows=(
        *OUTER,
        *NORMS,
        *interleaved(*ATTENTION),
        _OLD_ROUTER,
        ROUTER,
        *experts("block_sparse_moe", "w1", "w3", "w2"),
    ),
    example=decoder("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
)
