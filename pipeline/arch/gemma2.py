"""Gemma 2: norms that multiply by (1 + weight), before and after each part; every second layer has a sliding window."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import UNUSUAL_BASE, number, whole, window_pattern, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, sized, with_step
from pipeline.arch._steps import plus_one
from pipeline.types import f32, u32

_LAYER = "model.layers.{bid}"
_EMBEDDING, _OUTPUT_NORM, _ = OUTER

GEMMA_NORMS = with_step(
    plus_one,
    _OUTPUT_NORM,
    NORMS[0],
    Row(f"{_LAYER}.post_attention_layernorm.weight", "blk.{bid}.post_attention_norm.weight", shape=sized("width")),
    Row(f"{_LAYER}.pre_feedforward_layernorm.weight", "blk.{bid}.ffn_norm.weight", shape=sized("width")),
    Row(f"{_LAYER}.post_feedforward_layernorm.weight", "blk.{bid}.post_ffw_norm.weight", shape=sized("width")),
)


def _attention_scalar(config: ModelConfig) -> tuple[int]:
    return (config.width // config.n_heads if config.n_layers == 46 else config.head_dim,)


ARCH = Arch(
    name="gemma2",
    gguf="gemma2",
    classes=("Gemma2ForCausalLM",),
    keys=(
        *without("rope."),
        UNUSUAL_BASE,
        Key("attn_logit_softcapping", number("attn_logit_softcapping"), f32),
        Key("final_logit_softcapping", number("final_logit_softcapping"), f32),
        Key("attention.sliding_window", whole("sliding_window"), u32),
        window_pattern(2),
    ),
    rows=(_EMBEDDING, *GEMMA_NORMS, *ATTENTION, *MLP),
    drop=INV_FREQ,
    defaults={"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256},
    expect={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "query_pre_attn_scalar": _attention_scalar,
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False,),
    },
    ropes=("default",),
    example=decoder(
        "Gemma2ForCausalLM",
        hidden_activation="gelu_pytorch_tanh",
        head_dim=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=128,
        tie_word_embeddings=True,
    ),
)
