"""Hunyuan 0.5B to 7B: norms on each query and key head; a base of the rotary frequencies that is computed."""

from dataclasses import replace

from pipeline.arch._base import Arch, Key
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import rope_theta, whole, without
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QK_NORMS
from pipeline.types import f32, string, u32

_CONTEXT = 256 * 1024  # what the family was trained for; config.json has a smaller number where the scaling is dynamic


def _is_scaled(config: ModelConfig) -> bool:
    return bool(config.rope["rope_type"] == "dynamic")


def _base(config: ModelConfig) -> float | None:
    base = rope_theta(config)
    if base is None or not _is_scaled(config):
        return base
    alpha = ModelConfig(config.rope).need(float, "alpha")
    return float(base * alpha ** (config.head_dim / (config.head_dim - 2)))


ARCH = Arch(
    name="hunyuan_dense",
    gguf="hunyuan-dense",
    classes=("HunYuanDenseV1ForCausalLM",),
    keys=(
        *without("rope.", "context_length"),
        Key("context_length", lambda c: _CONTEXT if _is_scaled(c) else whole("max_position_embeddings")(c), u32),
        Key("rope.freq_base", _base, f32),
        Key("rope.scaling.type", lambda config: "none" if _is_scaled(config) else None, string),
        Key("rope.scaling.factor", lambda config: 1.0 if _is_scaled(config) else None, f32),
        Key("rope.scaling.original_context_length", lambda config: _CONTEXT if _is_scaled(config) else None, u32),
    ),
    rows=(
        *OUTER,
        *NORMS,
        *ATTENTION,
        replace(QK_NORMS[0], source="model.layers.{bid}.self_attn.query_layernorm.weight"),
        replace(QK_NORMS[1], source="model.layers.{bid}.self_attn.key_layernorm.weight"),
        *MLP,
    ),
    expect={"hidden_act": ("silu",), "use_qk_norm": (True,), "num_experts": (1,)},
    ropes=("default", "dynamic"),
    example=decoder("HunYuanDenseV1ForCausalLM", head_dim=16),
)
