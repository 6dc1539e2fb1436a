"""Falcon: queries, keys and values fused in groups of one key head each; attention and feed-forward side by side."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import LAYER_NORM
from pipeline.arch._rows import pair
from pipeline.arch._steps import ungroup
from pipeline.types import f32, string, u32


def _n_heads_kv(config: ModelConfig) -> int:
    """Count key heads; before Falcon 40B they were one for all queries, or one for each."""
    old = config.get(int, "n_head_kv")  # only the first 40B has this key
    if old or config.get(bool, "new_decoder_architecture"):
        return int(old or config.get(int, "num_kv_heads") or config.n_heads)
    return 1 if config.get(bool, "multi_query") else config.n_heads


def _group(config: ModelConfig) -> tuple[int, int, int]:
    return config.n_heads // _n_heads_kv(config) * config.head_dim, config.head_dim, config.head_dim


def _theta(config: ModelConfig) -> float | None:
    theta = config.rope["rope_theta"]
    return None if theta == 10000.0 else theta


ARCH = Arch(
    name="falcon",
    gguf="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    prefix="transformer.",
    keys=(
        Key("context_length", lambda config: config.get(int, "max_position_embeddings"), u32),
        Key("tensor_data_layout", lambda _config: "jploski", string),
        Key("embedding_length", lambda config: config.width, u32),
        Key("feed_forward_length", lambda config: config.get(int, "ffn_hidden_size") or 4 * config.width, u32),
        Key("block_count", lambda config: config.n_layers, u32),
        Key("attention.head_count", lambda config: config.n_heads, u32),
        Key("attention.head_count_kv", _n_heads_kv, u32),
        Key("rope.freq_base", _theta, f32),
        LAYER_NORM,
    ),
    rows=(
        Row("word_embeddings.weight", "token_embd.weight"),
        *pair("ln_f", "output_norm"),
        Row("lm_head.weight", "output.weight", optional=True),
        *pair("h.{bid}.input_layernorm", "blk.{bid}.attn_norm"),
        *pair("h.{bid}.ln_mlp", "blk.{bid}.attn_norm"),
        Row("h.{bid}.ln_attn.weight", "blk.{bid}.attn_norm_2.weight", optional=True),
        Row("h.{bid}.ln_attn.bias", "blk.{bid}.attn_norm_2.bias", optional=True),
        Row("h.{bid}.self_attention.query_key_value.weight", "blk.{bid}.attn_qkv.weight", (ungroup(_group),)),
        Row("h.{bid}.self_attention.dense.weight", "blk.{bid}.attn_output.weight"),
        Row("h.{bid}.mlp.dense_h_to_4h.weight", "blk.{bid}.ffn_up.weight"),
        Row("h.{bid}.mlp.dense_4h_to_h.weight", "blk.{bid}.ffn_down.weight"),
    ),
    drop=("h.{bid}.self_attention.rotary_emb.inv_freq",),
    expect={"activation": ("gelu",), "alibi": (False,), "parallel_attn": (True,), "bias": (False,)},
    ropes=("default",),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    example={
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
    },
)
