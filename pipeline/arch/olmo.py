"""OLMo 1: Llama's layout without weights in its norms."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import maybe_number, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, OUTER, interleaved
from pipeline.types import f32

ARCH = Arch(
    name="olmo",
    gguf="olmo",
    classes=("OlmoForCausalLM",),
    keys=(
        *without("attention.layer_norm_rms_epsilon"),
        Key("attention.layer_norm_epsilon", lambda _config: 1e-5, f32),
        Key("attention.clamp_kqv", maybe_number("clip_qkv"), f32),
    ),
    rows=(OUTER[0], OUTER[2], *interleaved(*ATTENTION), *MLP),
    drop=INV_FREQ,
    expect={"hidden_act": ("silu",)},
    example=decoder("OlmoForCausalLM", num_key_value_heads=4),
)
