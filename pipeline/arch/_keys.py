"""Metadata keys that many architectures share, in the order in which llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.arch._base import Getter, Key
from pipeline.arch._config import ModelConfig
from pipeline.arch._rope import unscaled_context, yarn_correction
from pipeline.types import KV, ValueType, array, f32, string, u32


def booleans(key: str, values: Sequence[bool]) -> KV:
    """Make an array of truths, one for each layer."""
    return array(key, ValueType.BOOL, values)


def integers(key: str, values: Sequence[int]) -> KV:
    """Make an array of whole numbers, one for each layer."""
    return array(key, ValueType.INT32, values)


def whole(*names: str) -> Getter:
    """Find a required whole number under one of *names*."""
    return lambda config: config.need(int, *names)


def number(*names: str) -> Getter:
    """Find a required number under one of *names*."""
    return lambda config: config.need(float, *names)


def maybe_whole(*names: str) -> Getter:
    """Find a whole number, or nothing."""
    return lambda config: config.get(int, *names)


def maybe_number(*names: str) -> Getter:
    """Find a number, or nothing."""
    return lambda config: config.get(float, *names)


def _scaling(kinds: tuple[str, ...], key: str) -> Getter:
    """Find a parameter of the rotary scaling where its kind is one of *kinds*."""

    def get(config: ModelConfig) -> object:
        rope = config.rope
        return ModelConfig(rope).get(float, key) if rope["rope_type"] in kinds else None

    return get


def _scaling_kind(config: ModelConfig) -> str | None:
    kind = config.rope["rope_type"]
    return kind if kind in {"linear", "yarn"} else None


def _original_context(config: ModelConfig) -> int | None:
    rope = config.rope
    if rope["rope_type"] != "yarn":
        return None
    return int(ModelConfig(rope).need(int, "original_max_position_embeddings"))


def rope_theta(config: ModelConfig) -> float | None:
    """Find the base of the rotary frequencies; llama.cpp's own default is 10000."""
    found: float | None = ModelConfig(config.rope).get(float, "rope_theta")
    return found


ROPE = (
    Key("rope.scaling.type", _scaling_kind, string),
    Key("rope.scaling.factor", _scaling(("linear", "yarn"), "factor"), f32),
    Key("rope.scaling.original_context_length", _original_context, u32),
    Key("rope.scaling.yarn_ext_factor", _scaling(("yarn",), "extrapolation_factor"), f32),
    Key("rope.scaling.yarn_attn_factor", _scaling(("yarn",), "attention_factor"), f32),
    Key("rope.scaling.yarn_beta_fast", _scaling(("yarn",), "beta_fast"), f32),
    Key("rope.scaling.yarn_beta_slow", _scaling(("yarn",), "beta_slow"), f32),
    Key("rope.freq_base", rope_theta, f32),
    Key("rope.freq_base_swa", lambda config: ModelConfig(config.rope_local).get(float, "rope_theta"), f32),
)

_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def context_length(config: ModelConfig) -> int:
    """Find for how many tokens the file is good: less than config.json's where scaling the engine lacks would begin."""
    context = int(config.need(int, *_CONTEXTS))
    return min(context, unscaled_context(config) or context)


CORE = (
    Key("block_count", lambda config: config.n_layers, u32),
    Key("context_length", context_length, u32),
    Key("embedding_length", lambda config: config.width, u32),
    Key("feed_forward_length", lambda config: config.width_ffn, u32),
    Key("attention.head_count", lambda config: config.n_heads, u32),
)

_NORM_EPSILON = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
LAYER_NORM = Key("attention.layer_norm_epsilon", number(*_NORM_EPSILON), f32)

DECODER = (
    *CORE,
    Key("attention.head_count_kv", lambda config: config.n_heads_kv, u32),
    *ROPE,
    Key("rope.scaling.attn_factor", yarn_correction, f32),
    Key("attention.layer_norm_rms_epsilon", number("rms_norm_eps"), f32),
    Key("attention.key_length", maybe_whole("head_dim"), u32),
    Key("attention.value_length", maybe_whole("head_dim"), u32),
)


def without(*names: str) -> tuple[Key, ...]:
    """Give the keys of DECODER but those of these names, or of names that start so where they end in a dot."""
    starts = tuple(name for name in names if name.endswith("."))
    return tuple(key for key in DECODER if key.name not in names and not key.name.startswith(starts or ("\0",)))


# Families whose base is the engine's own default do not have it in their files.
UNUSUAL_BASE = Key("rope.freq_base", lambda config: None if rope_theta(config) == 10000.0 else rope_theta(config), f32)
ROPE_DIMENSIONS = Key("rope.dimension_count", lambda config: config.width_rope, u32)
NO_SCALING = Key("rope.scaling.type", lambda _config: "none", string)
LOGIT_SCALE = Key("logit_scale", number("logit_scale"), f32)
VOCABULARY = Key("vocab_size", whole("vocab_size"), u32)

_POOLINGS = {"mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type
POOLING = Key("pooling_type", lambda config: _POOLINGS.get(config.pooling or ""), u32)
TOKEN_TYPES = Key("tokenizer.ggml.token_type_count", whole("type_vocab_size"), u32)

EXPERTS = (
    Key("expert_count", lambda config: config.n_experts or None, u32),
    Key("expert_used_count", maybe_whole("num_experts_per_tok"), u32),
)


def window_pattern(period: int) -> Key:
    """Say which layers have a sliding window, where it is not all but each *period*-th one, as the engine assumes."""

    def get(config: ModelConfig) -> list[bool] | None:
        usual = config.get(int, "sliding_window_pattern", "_sliding_window_pattern") or period
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        slides = slides or [(bid + 1) % usual != 0 for bid in range(config.n_layers)]
        return None if slides == [(bid + 1) % period != 0 for bid in range(config.n_layers)] else slides

    return Key("attention.sliding_window_pattern", get, booleans)
