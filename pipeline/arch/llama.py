"""Llama 2 and 3, and the many checkpoints that use their layout (SmolLM2, TinyLlama, Yi ...)."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._keys import DECODER, whole
from pipeline.arch._rope import llama3_frequencies
from pipeline.arch._steps import interleave_heads
from pipeline.types import u32

_QUERY, _KEY = (interleave_heads("n_heads"),), (interleave_heads("n_heads_kv"),)

ARCH = Arch(
    name="llama",
    gguf="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    keys=(
        *DECODER,
        Key("vocab_size", whole("vocab_size"), u32),
        Key("rope.dimension_count", lambda config: config.head_dim, u32),
    ),
    rows=(
        Row("model.embed_tokens.weight", "token_embd.weight"),
        Row("model.norm.weight", "output_norm.weight"),
        Row("lm_head.weight", "output.weight", optional=True),
        Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight"),
        Row("model.layers.{bid}.self_attn.q_proj.weight", "blk.{bid}.attn_q.weight", _QUERY),
        Row("model.layers.{bid}.self_attn.k_proj.weight", "blk.{bid}.attn_k.weight", _KEY),
        Row("model.layers.{bid}.self_attn.v_proj.weight", "blk.{bid}.attn_v.weight"),
        Row("model.layers.{bid}.self_attn.o_proj.weight", "blk.{bid}.attn_output.weight"),
        Row("model.layers.{bid}.self_attn.q_proj.bias", "blk.{bid}.attn_q.bias", _QUERY, optional=True),
        Row("model.layers.{bid}.self_attn.k_proj.bias", "blk.{bid}.attn_k.bias", _KEY, optional=True),
        Row("model.layers.{bid}.self_attn.v_proj.bias", "blk.{bid}.attn_v.bias", optional=True),
        Row("model.layers.{bid}.self_attn.o_proj.bias", "blk.{bid}.attn_output.bias", optional=True),
        Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight"),
        Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight"),
        Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight"),
        Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight"),
        Row("model.layers.{bid}.mlp.gate_proj.bias", "blk.{bid}.ffn_gate.bias", optional=True),
        Row("model.layers.{bid}.mlp.up_proj.bias", "blk.{bid}.ffn_up.bias", optional=True),
        Row("model.layers.{bid}.mlp.down_proj.bias", "blk.{bid}.ffn_down.bias", optional=True),
    ),
    drop=("model.layers.{bid}.self_attn.rotary_emb.inv_freq",),
    expect={"hidden_act": ("silu",)},
    ropes=("default", "linear", "yarn", "llama3"),
    literals=llama3_frequencies,
    example={
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 448,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
    },
)
