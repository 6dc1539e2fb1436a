"""GPT-2: its Conv1D weights lie transposed, its attention masks are stored as weights."""

from pipeline.arch._base import Arch, Row
from pipeline.arch._keys import CORE, LAYER_NORM
from pipeline.arch._rows import pair, sized
from pipeline.arch._steps import transpose

_CONV1D = (transpose,)

ARCH = Arch(
    name="gpt2",
    gguf="gpt2",
    classes=("GPT2LMHeadModel",),
    prefixes=tuple((name, f"transformer.{name}") for name in ("h.", "wte.", "wpe.", "ln_f.")),
    keys=(*CORE, LAYER_NORM),
    rows=(
        Row("transformer.wte.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        Row("transformer.wpe.weight", "position_embd.weight", shape=lambda c: (c.need(int, "n_positions"), c.width)),
        *pair("transformer.ln_f", "output_norm", sized("width")),
        Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *pair("transformer.h.{bid}.ln_1", "blk.{bid}.attn_norm", sized("width")),
        *pair("transformer.h.{bid}.attn.c_attn", "blk.{bid}.attn_qkv", lambda c: (3 * c.width, c.width), _CONV1D),
        *pair("transformer.h.{bid}.attn.c_proj", "blk.{bid}.attn_output", sized("width", "width"), _CONV1D),
        *pair("transformer.h.{bid}.ln_2", "blk.{bid}.ffn_norm", sized("width")),
        *pair("transformer.h.{bid}.mlp.c_fc", "blk.{bid}.ffn_up", sized("width_ffn", "width"), _CONV1D),
        *pair("transformer.h.{bid}.mlp.c_proj", "blk.{bid}.ffn_down", sized("width", "width_ffn"), _CONV1D),
    ),
    drop=("transformer.h.{bid}.attn.bias", "transformer.h.{bid}.attn.masked_bias"),
    expect={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    ropes=("default",),
    defaults={
        "n_positions": 1024,
        "expansion_ratio": 4,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    example={"architectures": ["GPT2LMHeadModel"], "vocab_size": 384, "n_embd": 64, "n_layer": 2, "n_head": 4},
)
