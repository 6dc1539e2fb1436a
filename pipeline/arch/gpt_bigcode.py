"""GPT BigCode (StarCoder 1, SantaCoder): GPT-2 with one key head for all queries, and weights the usual way round."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._keys import CORE, LAYER_NORM
from pipeline.arch._rows import pair, sized
from pipeline.arch.gpt2 import ARCH as GPT2
from pipeline.types import u32

_LAYER = "transformer.h.{bid}"

ARCH = Arch(
    name="gpt_bigcode",
    gguf="starcoder",
    classes=("GPTBigCodeForCausalLM",),
    keys=(*CORE, Key("attention.head_count_kv", lambda _config: 1, u32), LAYER_NORM),
    rows=(
        *(row for row in GPT2.rows if "{bid}" not in row.target),
        *pair(f"{_LAYER}.ln_1", "blk.{bid}.attn_norm", sized("width")),
        *pair(f"{_LAYER}.attn.c_attn", "blk.{bid}.attn_qkv", lambda c: (c.width + 2 * c.head_dim, c.width)),
        *pair(f"{_LAYER}.attn.c_proj", "blk.{bid}.attn_output", sized("width", "width")),
        *pair(f"{_LAYER}.ln_2", "blk.{bid}.ffn_norm", sized("width")),
        *pair(f"{_LAYER}.mlp.c_fc", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
        *pair(f"{_LAYER}.mlp.c_proj", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
    ),
    drop=GPT2.drop,
    expect={**GPT2.expect, "multi_query": (True,)},
    ropes=("default",),
    defaults={**GPT2.defaults, "activation_function": "gelu_pytorch_tanh", "multi_query": True},
    example={**GPT2.example, "architectures": ["GPTBigCodeForCausalLM"]},
)
