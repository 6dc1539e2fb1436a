"""MPT: positions by ALiBi, mostly without biases."""

from typing import Any

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import CORE, LAYER_NORM
from pipeline.arch._rows import biases, maybe, sized
from pipeline.types import Shape, f32, u32

_LAYER = "transformer.blocks.{bid}"


def _attention(config: ModelConfig) -> ModelConfig:
    usual = {"alibi": False, "alibi_bias_max": 8}
    return ModelConfig({**usual, **(config.get(dict, "attn_config") or {})})


def _n_heads_kv(config: ModelConfig) -> int | None:
    found: int | None = _attention(config).get(int, "kv_n_heads")
    return found


def _alibi(config: ModelConfig) -> float:
    attention = _attention(config)
    return float(attention.need(float, "alibi_bias_max")) if attention.need(bool, "alibi") else 0.0


def _qkv(config: ModelConfig) -> Shape:
    return config.width + 2 * (_n_heads_kv(config) or config.n_heads) * config.head_dim, config.width


def _plain_attention(config: ModelConfig) -> tuple[Any, ...]:
    """Give the attention of config.json if nothing in it is what the engine lacks."""
    attention = _attention(config).raw
    if attention.get("softmax_scale") is None and not attention.get("prefix_lm") and not attention.get("rope"):
        return (config.raw.get("attn_config"),)
    return ("no softmax_scale, prefix_lm or rope",)


_WEIGHTS = (
    Row("transformer.norm_f.weight", "output_norm.weight", shape=sized("width")),
    Row(f"{_LAYER}.norm_1.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
    Row(f"{_LAYER}.attn.Wqkv.weight", "blk.{bid}.attn_qkv.weight", shape=_qkv),
    Row(f"{_LAYER}.attn.out_proj.weight", "blk.{bid}.attn_output.weight", shape=sized("width", "width")),
    Row(f"{_LAYER}.norm_2.weight", "blk.{bid}.ffn_norm.weight", shape=sized("width")),
    Row(f"{_LAYER}.ffn.up_proj.weight", "blk.{bid}.ffn_up.weight", shape=sized("width_ffn", "width")),
    Row(f"{_LAYER}.ffn.down_proj.weight", "blk.{bid}.ffn_down.weight", shape=sized("width", "width_ffn")),
)
_NORMS_OF_HEADS = (
    Row(f"{_LAYER}.attn.q_ln.weight", "blk.{bid}.attn_q_norm.weight"),
    Row(f"{_LAYER}.attn.k_ln.weight", "blk.{bid}.attn_k_norm.weight"),
)

ARCH = Arch(
    name="mpt",
    gguf="mpt",
    classes=("MPTForCausalLM", "MptForCausalLM"),
    keys=(
        *CORE,
        Key("attention.head_count_kv", _n_heads_kv, u32),
        LAYER_NORM,
        Key("attention.clamp_kqv", lambda config: _attention(config).get(float, "clip_qkv"), f32),
        Key("attention.max_alibi_bias", _alibi, f32),
    ),
    rows=(
        Row("transformer.wte.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        Row("transformer.wpe.weight", "position_embd.weight", optional=True),
        Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *_WEIGHTS,
        *maybe(*biases(*_WEIGHTS), *_NORMS_OF_HEADS, *biases(*_NORMS_OF_HEADS)),
    ),
    expect={
        "attn_config": _plain_attention,
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "logit_scale": (None,),
        "embedding_fraction": (1.0,),
    },
    ropes=("default",),
    defaults={"expansion_ratio": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    example={
        "architectures": ["MPTForCausalLM"],
        "vocab_size": 384,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "max_seq_len": 256,
        "attn_config": {"alibi": True, "alibi_bias_max": 8},
    },
)
