"""Granite 3: Llama's layout with four multipliers."""

from dataclasses import replace

from pipeline.arch._base import Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import number
from pipeline.arch.llama import ARCH as LLAMA
from pipeline.types import f32

ARCH = replace(
    LLAMA,
    name="granite",
    gguf="granite",
    classes=("GraniteForCausalLM",),
    keys=(
        *LLAMA.keys,
        Key("attention.scale", number("attention_multiplier"), f32),
        Key("embedding_scale", number("embedding_multiplier"), f32),
        Key("residual_scale", number("residual_multiplier"), f32),
        Key("logit_scale", number("logits_scaling"), f32),
    ),
    example=decoder(
        "GraniteForCausalLM",
        attention_multiplier=0.125,
        embedding_multiplier=4.0,
        residual_multiplier=0.22,
        logits_scaling=2.0,
    ),
)
