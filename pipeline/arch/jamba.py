"""Jamba: blocks of Mamba and of attention in turn, without positions; experts in some of them."""

import math
from dataclasses import replace

from pipeline.arch._base import Arch, Blocks, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, EXPERTS, integers, number, whole
from pipeline.arch._rows import ATTENTION, OUTER, biases, only, sized
from pipeline.arch._steps import minus_exp, squeeze
from pipeline.types import f32, u32

_LAYER, _MAMBA = "model.layers.{bid}", "model.layers.{bid}.mamba"


def _every(kind: str, is_one: bool) -> Blocks:
    """Name the blocks that are of a *kind*, "attn" or "expert", or the others."""

    def blocks(config: ModelConfig) -> list[int]:
        period = config.within(1, 10_000, f"{kind}_layer_period")
        offset = config.within(0, 10_000, f"{kind}_layer_offset")
        exists = kind == "attn" or config.n_experts > 1
        ones = range(offset, config.n_layers, period) if exists else range(0)
        return [bid for bid in range(config.n_layers) if (bid in ones) is is_one]

    return blocks


_attends, _is_mamba = _every("attn", True), _every("attn", False)
_has_experts, _is_dense = _every("expert", True), _every("expert", False)


def _heads_kv(config: ModelConfig) -> list[int]:
    return [config.n_heads_kv if bid in _attends(config) else 0 for bid in range(config.n_layers)]


def _inner(config: ModelConfig) -> int:
    return int(config.need(int, "mamba_expand")) * config.width


def _n_states(config: ModelConfig) -> int:
    return config.within(1, 1 << 20, "mamba_d_state")


def _rank(config: ModelConfig) -> int:
    if config.raw.get("mamba_dt_rank") in (None, "auto"):
        return math.ceil(config.width / 16)
    return config.within(1, 1 << 20, "mamba_dt_rank")


def _projected(config: ModelConfig) -> tuple[int, int]:
    return _rank(config) + 2 * _n_states(config), _inner(config)


_CONV = Row(
    f"{_MAMBA}.conv1d.weight",
    "blk.{bid}.ssm_conv1d.weight",
    (squeeze,),
    shape=lambda c: (_inner(c), c.need(int, "mamba_d_conv")),
)
_DT = Row(f"{_MAMBA}.dt_proj.weight", "blk.{bid}.ssm_dt.weight", shape=lambda c: (_inner(c), _rank(c)))
_FFN = {"gate": ("width_ffn", "width"), "up": ("width_ffn", "width"), "down": ("width", "width_ffn")}

ARCH = Arch(
    name="jamba",
    gguf="jamba",
    classes=("JambaForCausalLM",),
    keys=(
        *CORE,
        Key("attention.head_count_kv", _heads_kv, integers),
        Key("ssm.conv_kernel", whole("mamba_d_conv"), u32),
        Key("ssm.inner_size", _inner, u32),
        Key("ssm.state_size", _n_states, u32),
        Key("ssm.time_step_rank", _rank, u32),
        Key("attention.layer_norm_rms_epsilon", number("rms_norm_eps"), f32),
        *EXPERTS,
    ),
    rows=(
        *(replace(row, source=row.patterns[0].replace("model.norm", "model.final_layernorm")) for row in OUTER),
        Row(f"{_LAYER}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
        Row(f"{_LAYER}.pre_ff_layernorm.weight", "blk.{bid}.ffn_norm.weight", shape=sized("width")),
        *only(_attends, *ATTENTION),
        *only(
            _is_mamba,
            Row(f"{_MAMBA}.in_proj.weight", "blk.{bid}.ssm_in.weight", shape=lambda c: (2 * _inner(c), c.width)),
            _CONV,
            *biases(_CONV),
            Row(f"{_MAMBA}.x_proj.weight", "blk.{bid}.ssm_x.weight", shape=_projected),
            _DT,
            *biases(_DT),
            Row(f"{_MAMBA}.dt_layernorm.weight", "blk.{bid}.ssm_dt_norm.weight", shape=lambda c: (_rank(c),)),
            Row(f"{_MAMBA}.b_layernorm.weight", "blk.{bid}.ssm_b_norm.weight", shape=lambda c: (_n_states(c),)),
            Row(f"{_MAMBA}.c_layernorm.weight", "blk.{bid}.ssm_c_norm.weight", shape=lambda c: (_n_states(c),)),
            Row(f"{_MAMBA}.A_log", "blk.{bid}.ssm_a", (minus_exp,), shape=lambda c: (_inner(c), _n_states(c))),
            Row(f"{_MAMBA}.D", "blk.{bid}.ssm_d", shape=lambda c: (_inner(c),)),
            Row(f"{_MAMBA}.out_proj.weight", "blk.{bid}.ssm_out.weight", shape=lambda c: (c.width, _inner(c))),
        ),
        *only(
            _is_dense,
            *(
                Row(f"{_LAYER}.feed_forward.{n}_proj.weight", f"blk.{{bid}}.ffn_{n}.weight", shape=sized(*shape))
                for n, shape in _FFN.items()
            ),
        ),
        *only(
            _has_experts,
            Row(
                f"{_LAYER}.feed_forward.router.weight",
                "blk.{bid}.ffn_gate_inp.weight",
                shape=sized("n_experts", "width"),
            ),
            *(
                Row(
                    f"{_LAYER}.feed_forward.experts.{{xid}}.{n}_proj.weight",
                    f"blk.{{bid}}.ffn_{n}_exps.weight",
                    shape=sized("n_experts", *shape),
                )
                for n, shape in _FFN.items()
            ),
        ),
    ),
    expect={"hidden_act": ("silu",), "mamba_conv_bias": (True,), "mamba_proj_bias": (False,)},
    ropes=("default",),
    defaults={"mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "rms_norm_eps": 1e-6},
    example=decoder(
        "JambaForCausalLM",
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        num_experts=4,
        num_experts_per_tok=2,
    ),
)
