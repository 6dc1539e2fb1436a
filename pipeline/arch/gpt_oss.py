"""gpt-oss: experts in MXFP4, kept as they are; biases everywhere, attention sinks, a window in every other layer."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, EXPERTS, whole, window_pattern
from pipeline.arch._rows import ATTENTION, OUTER, OUTPUT_BIAS, QKV_BIASES, needed, pair, sized
from pipeline.arch._steps import Step, mxfp4, piece, transpose
from pipeline.types import Shape, u32

_LAYER, _EXPERTS = "model.layers.{bid}", "model.layers.{bid}.mlp.experts"


def _each_second(_config: ModelConfig) -> tuple[int, int]:
    return 1, 1


def _half(number: int, shape: tuple[str, ...], name: str) -> tuple[Row, ...]:
    """Make the rows of gate or up, which alternate in the fused tensor: packed, or dequantized and then transposed."""
    take: Step = piece(number, _each_second)
    packed = (f"{_EXPERTS}.gate_up_proj_blocks", f"{_EXPERTS}.gate_up_proj_scales")
    return (
        Row(packed, f"{name}.weight", (take,), merge=mxfp4, shape=sized(*shape)),
        Row(f"{_EXPERTS}.gate_up_proj", f"{name}.weight", (transpose, take), shape=sized(*shape)),
        Row(f"{_EXPERTS}.gate_up_proj_bias", f"{name}.bias", (transpose, take, transpose), shape=sized(*shape[:2])),
    )


def _down(name: str) -> tuple[Row, ...]:
    shape: tuple[str, ...] = ("n_experts", "width", "width_expert")
    packed = (f"{_EXPERTS}.down_proj_blocks", f"{_EXPERTS}.down_proj_scales")
    return (
        Row(packed, f"{name}.weight", merge=mxfp4, shape=sized(*shape)),
        Row(f"{_EXPERTS}.down_proj", f"{name}.weight", (transpose,), shape=sized(*shape)),
        Row(f"{_EXPERTS}.down_proj_bias", f"{name}.bias", shape=sized(*shape[:2])),
    )


def _sinks(config: ModelConfig) -> Shape:
    return (config.n_heads,)


def _notes(config: ModelConfig) -> tuple[str, ...]:
    if config.rope.get("truncate") is False:
        return ("llama.cpp rounds the range of YaRN to whole dimensions, which this model does not: small differences",)
    return ()


ARCH = Arch(
    name="gpt_oss",
    gguf="gpt-oss",
    classes=("GptOssForCausalLM",),
    keys=(
        *DECODER,
        *EXPERTS,
        Key("expert_feed_forward_length", lambda config: config.width_expert, u32),
        Key("attention.sliding_window", whole("sliding_window"), u32),
        window_pattern(2),
    ),
    rows=(
        *OUTER,
        Row(f"{_LAYER}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
        Row(f"{_LAYER}.post_attention_layernorm.weight", "blk.{bid}.post_attention_norm.weight", shape=sized("width")),
        *ATTENTION,
        *needed(*QKV_BIASES, *OUTPUT_BIAS),
        Row(f"{_LAYER}.self_attn.sinks", "blk.{bid}.attn_sinks.weight", shape=_sinks),
        *pair(f"{_LAYER}.mlp.router", "blk.{bid}.ffn_gate_inp", sized("n_experts", "width")),
        *_half(0, ("n_experts", "width_expert", "width"), "blk.{bid}.ffn_gate_exps"),
        *_half(1, ("n_experts", "width_expert", "width"), "blk.{bid}.ffn_up_exps"),
        *_down("blk.{bid}.ffn_down_exps"),
    ),
    packed=("mxfp4",),
    expect={
        "hidden_act": ("silu",),
        "swiglu_limit": (7.0,),
        "swiglu_alpha": (1.702,),
        "attention_bias": (True,),
        "tie_word_embeddings": (False,),
    },
    ropes=("default", "yarn"),
    notes=_notes,
    example=decoder("GptOssForCausalLM", num_local_experts=4, num_experts_per_tok=2, head_dim=32, sliding_window=8),
)
