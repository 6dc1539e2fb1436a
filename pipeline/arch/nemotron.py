"""Nemotron 4 and Minitron: norms that multiply by (1 + weight) and have biases, a squared activation without a gate."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import LAYER_NORM, NO_SCALING, ROPE_DIMENSIONS, VOCABULARY, number, without
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, biases, with_step
from pipeline.arch._steps import plus_one
from pipeline.types import f32

ARCH = Arch(
    name="nemotron",
    gguf="nemotron",
    classes=("NemotronForCausalLM",),
    keys=(
        *without("rope.scaling.", "attention.layer_norm_rms_epsilon"),
        Key("attention.layer_norm_rms_epsilon", number("norm_eps"), f32),
        VOCABULARY,
        LAYER_NORM,
        ROPE_DIMENSIONS,
        NO_SCALING,
    ),
    rows=(
        OUTER[0],
        OUTER[2],
        *with_step(plus_one, OUTER[1], *NORMS),
        *biases(OUTER[1], *NORMS),
        *ATTENTION,
        *MLP[1:],
    ),
    defaults={"partial_rotary_factor": 0.5},
    expect={"hidden_act": ("relu2",), "mlp_bias": (False,), "tie_word_embeddings": (False,)},
    ropes=("default",),
    example=decoder("NemotronForCausalLM", hidden_act="relu2", norm_eps=1e-5, head_dim=16),
)
