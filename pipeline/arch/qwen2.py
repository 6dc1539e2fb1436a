"""Qwen 1.5, 2 and 2.5: Llama's layout with biases on q, k and v, and rotary halves left as they are."""

from pipeline.arch._base import Arch, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import DECODER


def _notes(config: ModelConfig) -> tuple[str, ...]:
    if config.get(bool, "use_sliding_window"):
        return (
            "config.json asks for sliding-window attention, which llama.cpp does not do for qwen2: "
            "answers may differ beyond the window",
        )
    return ()


ARCH = Arch(
    name="qwen2",
    gguf="qwen2",
    classes=("Qwen2ForCausalLM",),
    keys=DECODER,
    rows=(
        Row("model.embed_tokens.weight", "token_embd.weight"),
        Row("model.norm.weight", "output_norm.weight"),
        Row("lm_head.weight", "output.weight", optional=True),
        Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight"),
        Row("model.layers.{bid}.self_attn.q_proj.weight", "blk.{bid}.attn_q.weight"),
        Row("model.layers.{bid}.self_attn.k_proj.weight", "blk.{bid}.attn_k.weight"),
        Row("model.layers.{bid}.self_attn.v_proj.weight", "blk.{bid}.attn_v.weight"),
        Row("model.layers.{bid}.self_attn.q_proj.bias", "blk.{bid}.attn_q.bias"),
        Row("model.layers.{bid}.self_attn.k_proj.bias", "blk.{bid}.attn_k.bias"),
        Row("model.layers.{bid}.self_attn.v_proj.bias", "blk.{bid}.attn_v.bias"),
        Row("model.layers.{bid}.self_attn.o_proj.weight", "blk.{bid}.attn_output.weight"),
        Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight"),
        Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight"),
        Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight"),
        Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight"),
    ),
    drop=("model.layers.{bid}.self_attn.rotary_emb.inv_freq",),
    expect={"hidden_act": ("silu",)},
    notes=_notes,
    example={
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
)
