"""Apertus: Llama's layout without a gate, norms on each query and key head, an activation with learned numbers."""

from dataclasses import replace

from pipeline.arch._base import Row
from pipeline.arch._example import decoder
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QK_NORMS
from pipeline.arch.llama import ARCH as LLAMA

_LAYER = "model.layers.{bid}"

ARCH = replace(
    LLAMA,
    name="apertus",
    gguf="apertus",
    classes=("ApertusForCausalLM",),
    rows=(
        *OUTER,
        replace(NORMS[0], source=f"{_LAYER}.attention_layernorm.weight"),
        replace(NORMS[1], source=f"{_LAYER}.feedforward_layernorm.weight"),
        *ATTENTION,
        *QK_NORMS,
        *MLP[1:],
    ),
    scalars=tuple(
        Row(f"{_LAYER}.mlp.act_fn.{name}", f"xielu.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    expect={"hidden_act": ("xielu",), "tie_word_embeddings": (False,)},
    example=decoder("ApertusForCausalLM", hidden_act="xielu"),
)
