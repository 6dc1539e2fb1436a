"""BLOOM: queries, keys and values fused head by head, positions by ALiBi, a norm after the embeddings."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._keys import CORE, LAYER_NORM
from pipeline.arch._rows import pair, qkv_by_head, sized
from pipeline.types import u32

_LAYER = "transformer.h.{bid}"

ARCH = Arch(
    name="bloom",
    gguf="bloom",
    classes=("BloomForCausalLM",),
    keys=(*CORE, Key("attention.head_count_kv", lambda config: config.n_heads, u32), LAYER_NORM),
    rows=(
        Row("transformer.word_embeddings.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        *pair("transformer.word_embeddings_layernorm", "token_embd_norm", sized("width")),
        *pair("transformer.ln_f", "output_norm", sized("width")),
        Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *pair(f"{_LAYER}.input_layernorm", "blk.{bid}.attn_norm", sized("width")),
        *qkv_by_head(f"{_LAYER}.self_attention.query_key_value"),
        *pair(f"{_LAYER}.self_attention.dense", "blk.{bid}.attn_output", sized("width", "width")),
        *pair(f"{_LAYER}.post_attention_layernorm", "blk.{bid}.ffn_norm", sized("width")),
        *pair(f"{_LAYER}.mlp.dense_h_to_4h", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
        *pair(f"{_LAYER}.mlp.dense_4h_to_h", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
    ),
    prefixes=tuple(
        (name, f"transformer.{name}") for name in ("h.", "word_embeddings.", "word_embeddings_layernorm.", "ln_f.")
    ),
    expect={"apply_residual_connection_post_layernorm": (False,)},
    ropes=("default",),
    # What all published sizes were trained with; ALiBi has no limit of its own.
    defaults={"seq_length": 2048, "expansion_ratio": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    example={"architectures": ["BloomForCausalLM"], "vocab_size": 384, "n_embed": 64, "n_layer": 2, "n_head": 4},
)
