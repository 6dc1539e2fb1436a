"""DeepSeek V2 and V3: multi-head latent attention, dense first blocks, then shared and routed experts.

llama.cpp absorbs the two halves of kv_b_proj into queries and outputs, so that one key head, the latent, serves all.
"""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, EXPERTS, ROPE, number, whole
from pipeline.arch._rows import EXPERTS as EXPERT_ROWS
from pipeline.arch._rows import INV_FREQ, MLP, NORMS, OUTER, gated, only
from pipeline.arch._steps import per_head, piece, transpose
from pipeline.errors import UnsupportedError
from pipeline.types import boolean, f32, u32

_ATTN, _MLP = "model.layers.{bid}.self_attn", "model.layers.{bid}.mlp"
_GATING = {"softmax": 1, "sigmoid": 2}


def _n_dense(config: ModelConfig) -> int:
    return config.within(0, config.n_layers, "first_k_dense_replace") if config.n_experts else config.n_layers


def _dense(config: ModelConfig) -> range:
    return range(_n_dense(config))


def _sparse(config: ModelConfig) -> range:
    return range(_n_dense(config), config.n_layers)


def _with_lora(config: ModelConfig) -> range:
    return range(config.n_layers if config.get(int, "q_lora_rank") else 0)


def _without_lora(config: ModelConfig) -> range:
    return range(0 if config.get(int, "q_lora_rank") else config.n_layers)


def _shared(config: ModelConfig) -> range:
    return _sparse(config) if config.get(int, "n_shared_experts") else range(0)


def _corrected(config: ModelConfig) -> range:
    return _sparse(config) if _is_v3(config) else range(0)


def _is_v3(config: ModelConfig) -> bool:
    return "DeepseekV3ForCausalLM" in config.raw["architectures"]


def _width_shared(config: ModelConfig) -> int:
    return config.width_expert * int(config.need(int, "n_shared_experts"))


def _latent(config: ModelConfig) -> int:
    return config.within(1, 1 << 20, "kv_lora_rank")


def _key_value(config: ModelConfig) -> tuple[int, int]:
    return config.within(1, 1 << 20, "qk_nope_head_dim"), config.within(1, 1 << 20, "v_head_dim")


def _rotated(config: ModelConfig) -> int:
    return config.within(1, 1 << 20, "qk_rope_head_dim")


def _width_q(config: ModelConfig) -> int:
    return config.n_heads * (_key_value(config)[0] + _rotated(config))


def _gating(config: ModelConfig) -> int:
    usual = "sigmoid" if _is_v3(config) else "softmax"
    return _GATING[config.get(str, "scoring_func") or usual]


def _log_multiplier(config: ModelConfig) -> float | None:
    """Give what llama.cpp scales attention by where the rotary scaling is yarn; it knows one mscale for both places."""
    rope = ModelConfig(config.rope)
    mscale, of_all = rope.get(float, "mscale"), rope.get(float, "mscale_all_dim")
    if rope.raw["rope_type"] == "yarn" and (not of_all or mscale != of_all):
        raise UnsupportedError(
            "llama.cpp computes this yarn scaling in another way",
            where="config.json, rope scaling",
            expected="mscale and mscale_all_dim, equal and not zero",
            found=f"mscale {mscale}, mscale_all_dim {of_all}",
        )
    return None if of_all is None else 0.1 * of_all


def _notes(config: ModelConfig) -> tuple[str, ...]:
    if config.get(str, "topk_method") == "group_limited_greedy" and (config.get(int, "n_group") or 1) > 1:
        return (
            "llama.cpp ranks groups of experts by the two best of each, this model by the best one: "
            "a token may go to other experts than in transformers",
        )
    return ()


ARCH = Arch(
    name="deepseek2",
    gguf="deepseek2",
    classes=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    keys=(
        *CORE,
        Key("attention.head_count_kv", lambda _config: 1, u32),
        *ROPE,
        Key("rope.dimension_count", _rotated, u32),
        Key("rope.scaling.yarn_log_multiplier", _log_multiplier, f32),
        Key("attention.layer_norm_rms_epsilon", number("rms_norm_eps"), f32),
        Key("attention.q_lora_rank", lambda config: config.get(int, "q_lora_rank"), u32),
        Key("attention.kv_lora_rank", _latent, u32),
        Key("attention.key_length", lambda config: _latent(config) + _rotated(config), u32),
        Key("attention.value_length", _latent, u32),
        Key("attention.key_length_mla", lambda config: _key_value(config)[0] + _rotated(config), u32),
        Key("attention.value_length_mla", whole("v_head_dim"), u32),
        *EXPERTS,
        Key("expert_group_count", lambda config: config.get(int, "n_group"), u32),
        Key("expert_group_used_count", lambda config: config.get(int, "topk_group"), u32),
        Key("expert_gating_func", _gating, u32),
        Key("expert_feed_forward_length", lambda config: config.width_expert, u32),
        Key("expert_shared_count", lambda config: config.get(int, "n_shared_experts") or 0, u32),
        Key("expert_weights_scale", lambda config: config.get(float, "routed_scaling_factor"), f32),
        Key("expert_weights_norm", lambda config: config.get(bool, "norm_topk_prob") or None, boolean),
        Key("leading_dense_block_count", _n_dense, u32),
        Key("vocab_size", lambda config: config.n_vocab, u32),
    ),
    rows=(
        *OUTER,
        *NORMS,
        *only(
            _without_lora,
            Row(f"{_ATTN}.q_proj.weight", "blk.{bid}.attn_q.weight", shape=lambda c: (_width_q(c), c.width)),
        ),
        *only(
            _with_lora,
            Row(f"{_ATTN}.q_a_proj.weight", "blk.{bid}.attn_q_a.weight"),
            Row(f"{_ATTN}.q_a_layernorm.weight", "blk.{bid}.attn_q_a_norm.weight"),
            Row(
                f"{_ATTN}.q_b_proj.weight",
                "blk.{bid}.attn_q_b.weight",
                shape=lambda c: (_width_q(c), c.need(int, "q_lora_rank")),
            ),
        ),
        Row(
            f"{_ATTN}.kv_a_proj_with_mqa.weight",
            "blk.{bid}.attn_kv_a_mqa.weight",
            shape=lambda c: (_latent(c) + _rotated(c), c.width),
        ),
        Row(f"{_ATTN}.kv_a_layernorm.weight", "blk.{bid}.attn_kv_a_norm.weight", shape=lambda c: (_latent(c),)),
        Row(
            f"{_ATTN}.kv_b_proj.weight",
            "blk.{bid}.attn_k_b.weight",
            (piece(0, _key_value), per_head, transpose),
            shape=lambda c: (c.n_heads, _latent(c), _key_value(c)[0]),
        ),
        Row(
            f"{_ATTN}.kv_b_proj.weight",
            "blk.{bid}.attn_v_b.weight",
            (piece(1, _key_value), per_head),
            shape=lambda c: (c.n_heads, _key_value(c)[1], _latent(c)),
        ),
        Row(
            f"{_ATTN}.o_proj.weight",
            "blk.{bid}.attn_output.weight",
            shape=lambda c: (c.width, c.n_heads * _key_value(c)[1]),
        ),
        *only(_dense, *MLP),
        *only(_sparse, *EXPERT_ROWS),
        *only(_corrected, Row(f"{_MLP}.gate.e_score_correction_bias", "blk.{bid}.exp_probs_b.bias")),
        *only(_shared, *gated(f"{_MLP}.shared_experts", "shexp", _width_shared)),
    ),
    drop=INV_FREQ,
    abilities={"model.layers.{bid}.{any}": "layers that guess further tokens (MTP):"},
    expect={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "moe_layer_freq": (1,),
        "scoring_func": tuple(_GATING),
        "rope_interleave": (True,),
    },
    ropes=("default", "yarn"),
    notes=_notes,
    example=decoder(
        "DeepseekV2ForCausalLM",
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
)
