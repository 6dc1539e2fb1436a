"""Falcon: queries, keys and values fused in groups of one key head each; attention and feed-forward side by side."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, LAYER_NORM, UNUSUAL_BASE
from pipeline.arch._rows import only, pair, sized
from pipeline.arch._steps import ungroup
from pipeline.types import string, u32


def _is_new(config: ModelConfig) -> bool:
    # Only the first form of Falcon 40B, with code of its own, has n_head_kv.
    return bool(config.get(bool, "new_decoder_architecture") or config.get(int, "n_head_kv"))


def _n_heads_kv(config: ModelConfig) -> int:
    """Count key heads; before Falcon 40B they were one for all queries, or one for each."""
    if _is_new(config):
        return config.within(1, config.n_heads, "num_kv_heads", "n_head_kv")
    return 1 if config.get(bool, "multi_query") else config.n_heads


def _two_norms(config: ModelConfig) -> range:
    return range(config.n_layers if _is_new(config) and config.get(int, "num_ln_in_parallel_attn") != 1 else 0)


def _one_norm(config: ModelConfig) -> range:
    return range(0 if _two_norms(config) else config.n_layers)


def _group(config: ModelConfig) -> tuple[int, int, int]:
    return config.n_heads // _n_heads_kv(config) * config.head_dim, config.head_dim, config.head_dim


ARCH = Arch(
    name="falcon",
    gguf="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    keys=(
        *CORE,
        Key("attention.head_count_kv", _n_heads_kv, u32),
        Key("tensor_data_layout", lambda _config: "jploski", string),
        UNUSUAL_BASE,
        LAYER_NORM,
    ),
    rows=(
        Row("transformer.word_embeddings.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        *pair("transformer.ln_f", "output_norm", sized("width")),
        Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *only(_one_norm, *pair("transformer.h.{bid}.input_layernorm", "blk.{bid}.attn_norm", sized("width"))),
        *only(_two_norms, *pair("transformer.h.{bid}.ln_mlp", "blk.{bid}.attn_norm", sized("width"))),
        *only(_two_norms, *pair("transformer.h.{bid}.ln_attn", "blk.{bid}.attn_norm_2", sized("width"))),
        Row(
            "transformer.h.{bid}.self_attention.query_key_value.weight",
            "blk.{bid}.attn_qkv.weight",
            (ungroup(_group),),
            shape=lambda config: (sum(_group(config)) * _n_heads_kv(config), config.width),
        ),
        Row(
            "transformer.h.{bid}.self_attention.dense.weight",
            "blk.{bid}.attn_output.weight",
            shape=sized("width", "width"),
        ),
        Row(
            "transformer.h.{bid}.mlp.dense_h_to_4h.weight", "blk.{bid}.ffn_up.weight", shape=sized("width_ffn", "width")
        ),
        Row(
            "transformer.h.{bid}.mlp.dense_4h_to_h.weight",
            "blk.{bid}.ffn_down.weight",
            shape=sized("width", "width_ffn"),
        ),
    ),
    drop=("transformer.h.{bid}.self_attention.rotary_emb.inv_freq",),
    expect={"activation": ("gelu",), "alibi": (False,), "parallel_attn": (True,), "bias": (False,)},
    ropes=("default", "dynamic"),
    defaults={
        "max_position_embeddings": 2048,
        "expansion_ratio": 4,
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    example=decoder("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2),
)
