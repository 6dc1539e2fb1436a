"""Phi-3, 3.5 and 4 (mini and 14B): fused projections, which the engine splits itself, and tables of rotary factors."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import ROPE_DIMENSIONS, number, rope_theta, whole
from pipeline.arch._notes import ignored_window
from pipeline.arch._rope import LONGROPE, longrope_attention, longrope_factors
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER
from pipeline.types import f32, u32

_LAYER = "model.layers.{bid}"

# llama.cpp takes the first half for the gate.
GATE_UP = Row(
    f"{_LAYER}.mlp.gate_up_proj.weight",
    "blk.{bid}.ffn_up.weight",
    shape=lambda config: (2 * config.width_ffn, config.width),
)


def _original_context(config: ModelConfig) -> int:
    original = ModelConfig(config.rope).get(int, "original_max_position_embeddings")
    return int(original or config.need(int, "max_position_embeddings"))


ARCH = Arch(
    name="phi3",
    gguf="phi3",
    classes=("Phi3ForCausalLM",),
    keys=(
        Key("rope.scaling.attn_factor", longrope_attention, f32),
        Key("context_length", whole("max_position_embeddings"), u32),
        Key("rope.scaling.original_context_length", _original_context, u32),
        Key("embedding_length", whole("hidden_size"), u32),
        Key("feed_forward_length", whole("intermediate_size"), u32),
        Key("block_count", lambda config: config.n_layers, u32),
        Key("attention.head_count", lambda config: config.n_heads, u32),
        Key("attention.head_count_kv", lambda config: config.n_heads_kv, u32),
        Key("attention.layer_norm_rms_epsilon", number("rms_norm_eps"), f32),
        ROPE_DIMENSIONS,
        Key("rope.freq_base", rope_theta, f32),
        # Zero tells the engine that there is no window, rather than that the file is an old one.
        Key("attention.sliding_window", lambda config: config.get(int, "sliding_window") or 0, u32),
    ),
    rows=(
        *OUTER,
        *NORMS,
        ATTENTION[3],
        MLP[2],
        Row(
            f"{_LAYER}.self_attn.qkv_proj.weight",
            "blk.{bid}.attn_qkv.weight",
            shape=lambda config: (config.width_q + 2 * config.width_kv, config.width),
        ),
        GATE_UP,
    ),
    drop=INV_FREQ,
    expect={"hidden_act": ("silu",)},
    ropes=("default", *LONGROPE),
    literals=longrope_factors,
    notes=ignored_window,
    example=decoder("Phi3ForCausalLM", original_max_position_embeddings=512),
)
