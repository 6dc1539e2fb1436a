"""Mamba: a state space model, without attention."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import number, whole
from pipeline.arch._rows import biases, sized
from pipeline.arch._steps import minus_exp, squeeze
from pipeline.types import boolean, f32, u32

_MIXER = "backbone.layers.{bid}.mixer"


def width_inner(config: ModelConfig) -> int:
    """Find the width of the state space's input."""
    return int(config.get(int, "intermediate_size") or config.need(int, "expand") * config.width)


_CONV = Row(
    f"{_MIXER}.conv1d.weight",
    "blk.{bid}.ssm_conv1d.weight",
    (squeeze,),
    shape=lambda c: (width_inner(c), c.need(int, "conv_kernel")),
)
_DT = Row(
    f"{_MIXER}.dt_proj.weight",
    "blk.{bid}.ssm_dt.weight",
    shape=lambda c: (width_inner(c), c.need(int, "time_step_rank")),
)

# The parts that Mamba 2 shares.
OUTER = (
    Row("backbone.embeddings.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
    Row("backbone.norm_f.weight", "output_norm.weight", shape=sized("width")),
    Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
    Row("backbone.layers.{bid}.norm.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
    Row(f"{_MIXER}.out_proj.weight", "blk.{bid}.ssm_out.weight", shape=lambda c: (c.width, width_inner(c))),
)
KEYS = (
    Key("context_length", lambda _config: 1 << 20, u32),  # it has no limit
    Key("embedding_length", lambda config: config.width, u32),
    Key("feed_forward_length", lambda _config: 0, u32),
    Key("attention.head_count", lambda _config: 0, u32),
    Key("block_count", lambda config: config.n_layers, u32),
    Key("ssm.conv_kernel", whole("conv_kernel"), u32),
    Key("ssm.inner_size", width_inner, u32),
    Key("ssm.state_size", whole("state_size"), u32),
    Key("attention.layer_norm_rms_epsilon", number("layer_norm_epsilon"), f32),
)

ARCH = Arch(
    name="mamba",
    gguf="mamba",
    classes=("MambaForCausalLM",),
    keys=(
        *KEYS,
        Key("ssm.time_step_rank", whole("time_step_rank"), u32),
        Key("ssm.dt_b_c_rms", lambda config: config.get(str, "model_type") == "falcon_mamba", boolean),
    ),
    rows=(
        *OUTER,
        Row(f"{_MIXER}.in_proj.weight", "blk.{bid}.ssm_in.weight", shape=lambda c: (2 * width_inner(c), c.width)),
        _CONV,
        *biases(_CONV),
        Row(
            f"{_MIXER}.x_proj.weight",
            "blk.{bid}.ssm_x.weight",
            shape=lambda c: (c.need(int, "time_step_rank") + 2 * c.need(int, "state_size"), width_inner(c)),
        ),
        _DT,
        *biases(_DT),
        Row(
            f"{_MIXER}.A_log",
            "blk.{bid}.ssm_a",
            (minus_exp,),
            shape=lambda c: (width_inner(c), c.need(int, "state_size")),
        ),
        Row(f"{_MIXER}.D", "blk.{bid}.ssm_d", shape=lambda c: (width_inner(c),)),
    ),
    expect={
        "hidden_act": ("silu",),
        "use_bias": (False,),
        "use_conv_bias": (True,),
        "intermediate_size": lambda config: (2 * config.width,),
    },
    ropes=("default",),
    vocab_multiple=8,
    defaults={
        "conv_kernel": 4,
        "state_size": 16,
        "expand": 2,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    example={
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": 384,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "time_step_rank": 8,
    },
)
