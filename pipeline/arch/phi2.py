"""Phi-1, 1.5 and 2: attention and feed-forward beside each other, biases everywhere, part of each head rotates."""

from dataclasses import replace

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import LAYER_NORM, ROPE_DIMENSIONS, UNUSUAL_BASE, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, biases

_LAYER = "model.layers.{bid}"
_WEIGHTS = (
    replace(OUTER[1], source="model.final_layernorm.weight"),
    NORMS[0],
    *ATTENTION[:3],
    replace(ATTENTION[3], source=f"{_LAYER}.self_attn.dense.weight"),
    replace(MLP[1], source=f"{_LAYER}.mlp.fc1.weight"),
    replace(MLP[2], source=f"{_LAYER}.mlp.fc2.weight"),
)

ARCH = Arch(
    name="phi2",
    gguf="phi2",
    classes=("PhiForCausalLM",),
    keys=(*without("rope.", "attention.layer_norm_rms_epsilon"), LAYER_NORM, ROPE_DIMENSIONS, UNUSUAL_BASE),
    rows=(OUTER[0], OUTER[2], *_WEIGHTS, *biases(OUTER[2], *_WEIGHTS)),
    drop=INV_FREQ,
    defaults={"partial_rotary_factor": 0.5},
    expect={"hidden_act": ("gelu_new",), "qk_layernorm": (False,), "tie_word_embeddings": (False,)},
    ropes=("default", "dynamic"),
    example=decoder("PhiForCausalLM", hidden_act="gelu_new", layer_norm_eps=1e-5, partial_rotary_factor=0.5),
)
