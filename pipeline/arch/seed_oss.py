"""Seed-OSS: Llama's layout with biases on q, k and v, and rotary halves left as they are."""

from dataclasses import replace

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QKV_BIASES, when

ARCH = Arch(
    name="seed_oss",
    gguf="seed_oss",
    classes=("SeedOssForCausalLM",),
    keys=DECODER,
    rows=(
        *OUTER,
        NORMS[0],
        replace(NORMS[1], target="blk.{bid}.post_attention_norm.weight"),
        *ATTENTION,
        *when("attention_bias", *QKV_BIASES),
        *MLP,
    ),
    expect={"hidden_act": ("silu",), "attention_out_bias": (False,), "mlp_bias": (False,)},
    example=decoder("SeedOssForCausalLM", head_dim=32, attention_bias=True),
)
