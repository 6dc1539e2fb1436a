"""GLM-4 0414: norms before and after each part, gate and up in one projection, half of each head rotates."""

from dataclasses import replace

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, ROPE_DIMENSIONS
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QKV_BIASES, when
from pipeline.arch.phi3 import GATE_UP

_LAYER = "model.layers.{bid}"

ARCH = Arch(
    name="glm4",
    gguf="glm4",
    classes=("Glm4ForCausalLM",),
    keys=(*DECODER, ROPE_DIMENSIONS),
    rows=(
        *OUTER,
        *NORMS,
        replace(
            NORMS[1], source=f"{_LAYER}.post_self_attn_layernorm.weight", target="blk.{bid}.post_attention_norm.weight"
        ),
        replace(NORMS[1], source=f"{_LAYER}.post_mlp_layernorm.weight", target="blk.{bid}.post_ffw_norm.weight"),
        *ATTENTION,
        *when("attention_bias", *QKV_BIASES),
        GATE_UP,
        MLP[2],
    ),
    defaults={"partial_rotary_factor": 0.5},
    expect={"hidden_act": ("silu",)},
    example=decoder("Glm4ForCausalLM", head_dim=16, partial_rotary_factor=0.5),
)
