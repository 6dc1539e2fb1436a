"""GPT-2: its Conv1D weights lie transposed, its attention masks are stored as weights."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._keys import LAYER_NORM, whole
from pipeline.arch._rows import pair
from pipeline.arch._steps import transpose
from pipeline.types import u32

ARCH = Arch(
    name="gpt2",
    gguf="gpt2",
    classes=("GPT2LMHeadModel",),
    prefix="transformer.",
    keys=(
        Key("block_count", lambda config: config.n_layers, u32),
        Key("context_length", whole("n_positions", "n_ctx"), u32),
        Key("embedding_length", lambda config: config.width, u32),
        Key("feed_forward_length", lambda config: config.get(int, "n_inner") or 4 * config.width, u32),
        Key("attention.head_count", lambda config: config.n_heads, u32),
        LAYER_NORM,
    ),
    rows=(
        Row("wte.weight", "token_embd.weight"),
        Row("wpe.weight", "position_embd.weight"),
        *pair("ln_f", "output_norm"),
        Row("lm_head.weight", "output.weight", optional=True),
        *pair("h.{bid}.ln_1", "blk.{bid}.attn_norm"),
        Row("h.{bid}.attn.c_attn.weight", "blk.{bid}.attn_qkv.weight", (transpose,)),
        Row("h.{bid}.attn.c_attn.bias", "blk.{bid}.attn_qkv.bias"),
        Row("h.{bid}.attn.c_proj.weight", "blk.{bid}.attn_output.weight", (transpose,)),
        Row("h.{bid}.attn.c_proj.bias", "blk.{bid}.attn_output.bias"),
        *pair("h.{bid}.ln_2", "blk.{bid}.ffn_norm"),
        Row("h.{bid}.mlp.c_fc.weight", "blk.{bid}.ffn_up.weight", (transpose,)),
        Row("h.{bid}.mlp.c_fc.bias", "blk.{bid}.ffn_up.bias"),
        Row("h.{bid}.mlp.c_proj.weight", "blk.{bid}.ffn_down.weight", (transpose,)),
        Row("h.{bid}.mlp.c_proj.bias", "blk.{bid}.ffn_down.bias"),
    ),
    drop=("h.{bid}.attn.bias", "h.{bid}.attn.masked_bias"),
    expect={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    ropes=("default",),
    defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    example={
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 384,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
)
