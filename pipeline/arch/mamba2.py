"""Mamba 2: heads with one decay each, and a norm before the output."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._rows import biases
from pipeline.arch._steps import fold, minus_exp, squeeze
from pipeline.arch.mamba import KEYS, OUTER, width_inner
from pipeline.types import Shape, u32

_MIXER = "backbone.layers.{bid}.mixer"


def _n_heads(config: ModelConfig) -> int:
    return width_inner(config) // config.head_dim


def _n_groups(config: ModelConfig) -> int:
    return int(config.need(int, "n_groups"))


def _width_conv(config: ModelConfig) -> int:
    return width_inner(config) + 2 * _n_groups(config) * int(config.need(int, "state_size"))


def _column(config: ModelConfig) -> Shape:
    return _n_heads(config), 1


def _per_group(config: ModelConfig) -> Shape:
    return _n_groups(config), width_inner(config) // _n_groups(config)


def _no_limit(config: ModelConfig) -> tuple[object, ...]:
    limit = config.get(list, "time_step_limit") or []
    is_finite = len(limit) == 2 and isinstance(limit[1], int | float) and limit[1] < float("inf")
    return ([0.0, "Infinity"],) if is_finite or (limit and limit[0] != 0) else (limit,)


_CONV = Row(
    f"{_MIXER}.conv1d.weight",
    "blk.{bid}.ssm_conv1d.weight",
    (squeeze,),
    shape=lambda c: (_width_conv(c), c.need(int, "conv_kernel")),
)

ARCH = Arch(
    name="mamba2",
    gguf="mamba2",
    classes=("Mamba2ForCausalLM",),
    keys=(*KEYS, Key("ssm.time_step_rank", _n_heads, u32), Key("ssm.group_count", _n_groups, u32)),
    rows=(
        *OUTER,
        Row(
            f"{_MIXER}.in_proj.weight",
            "blk.{bid}.ssm_in.weight",
            shape=lambda c: (width_inner(c) + _width_conv(c) + _n_heads(c), c.width),
        ),
        _CONV,
        *biases(_CONV),
        Row(f"{_MIXER}.dt_bias", "blk.{bid}.ssm_dt.bias", shape=lambda c: (_n_heads(c),)),
        Row(f"{_MIXER}.A_log", "blk.{bid}.ssm_a", (minus_exp, fold(_column))),
        Row(f"{_MIXER}.D", "blk.{bid}.ssm_d", (fold(_column),)),
        Row(f"{_MIXER}.norm.weight", "blk.{bid}.ssm_norm.weight", (fold(_per_group),)),
    ),
    prefixes=(("model.backbone.", "backbone."), ("model.lm_head.", "lm_head.")),
    expect={
        "hidden_act": ("silu",),
        "use_bias": (False,),
        "use_conv_bias": (True,),
        "time_step_limit": _no_limit,
        "intermediate_size": lambda config: (2 * config.width,),
    },
    ropes=("default",),
    vocab_multiple=16,
    defaults={
        "conv_kernel": 4,
        "state_size": 128,
        "head_dim": 64,
        "n_groups": 8,
        "expand": 2,
        "layer_norm_epsilon": 1e-5,
    },
    example={
        "architectures": ["Mamba2ForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_heads": 8,
        "n_groups": 1,
        "state_size": 16,
    },
)
