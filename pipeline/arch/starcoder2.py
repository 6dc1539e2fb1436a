"""StarCoder 2: layer norms, and biases everywhere."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import CORE, LAYER_NORM, ROPE
from pipeline.arch._rows import pair
from pipeline.types import u32


def _notes(config: ModelConfig) -> tuple[str, ...]:
    window = config.get(int, "sliding_window")
    if window:
        return (f"llama.cpp attends to all of the context, not to the last {window} tokens as the model was trained",)
    return ()


ARCH = Arch(
    name="starcoder2",
    gguf="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    keys=(*CORE, Key("attention.head_count_kv", lambda config: config.n_heads_kv, u32), *ROPE, LAYER_NORM),
    rows=(
        Row("model.embed_tokens.weight", "token_embd.weight"),
        *pair("model.norm", "output_norm"),
        Row("lm_head.weight", "output.weight", optional=True),
        *pair("model.layers.{bid}.input_layernorm", "blk.{bid}.attn_norm"),
        *pair("model.layers.{bid}.self_attn.q_proj", "blk.{bid}.attn_q"),
        *pair("model.layers.{bid}.self_attn.k_proj", "blk.{bid}.attn_k"),
        *pair("model.layers.{bid}.self_attn.v_proj", "blk.{bid}.attn_v"),
        *pair("model.layers.{bid}.self_attn.o_proj", "blk.{bid}.attn_output"),
        *pair("model.layers.{bid}.post_attention_layernorm", "blk.{bid}.ffn_norm"),
        *pair("model.layers.{bid}.mlp.c_fc", "blk.{bid}.ffn_up"),
        *pair("model.layers.{bid}.mlp.c_proj", "blk.{bid}.ffn_down"),
    ),
    drop=("model.layers.{bid}.self_attn.rotary_emb.inv_freq",),
    expect={"hidden_act": ("gelu_pytorch_tanh", "gelu_new", "gelu"), "use_bias": (True,)},
    defaults={"norm_epsilon": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True},
    notes=_notes,
    example={
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
    },
)
