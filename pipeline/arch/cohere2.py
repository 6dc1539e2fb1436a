"""Command R7B and Command A: like Command R; three layers with a sliding window, then one without rotary embedding."""

from dataclasses import replace

from pipeline.arch._base import Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import (
    LAYER_NORM,
    LOGIT_SCALE,
    NO_SCALING,
    ROPE_DIMENSIONS,
    VOCABULARY,
    whole,
    window_pattern,
    without,
)
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER
from pipeline.arch.cohere import ARCH as COHERE
from pipeline.types import u32

ARCH = replace(
    COHERE,
    name="cohere2",
    gguf="cohere2",
    classes=("Cohere2ForCausalLM",),
    keys=(
        *without("rope.scaling.", "attention.layer_norm_rms_epsilon"),
        LAYER_NORM,
        LOGIT_SCALE,
        Key("attention.sliding_window", whole("sliding_window"), u32),
        window_pattern(4),
        VOCABULARY,
        ROPE_DIMENSIONS,
        NO_SCALING,
    ),
    rows=(OUTER[0], OUTER[1], NORMS[0], *ATTENTION, *MLP),
    defaults={"tie_word_embeddings": True},
    expect={"hidden_act": ("silu",), "tie_word_embeddings": (True,), "rotary_pct": (1.0,)},
    example=decoder(
        "Cohere2ForCausalLM", layer_norm_eps=1e-5, logit_scale=0.25, sliding_window=128, tie_word_embeddings=True
    ),
)
