"""GPT-NeoX and Pythia: queries, keys and values fused head by head, a quarter of each head rotated."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, LAYER_NORM
from pipeline.arch._rows import pair, qkv_by_head, sized
from pipeline.types import boolean, f32, u32

_LAYER = "gpt_neox.layers.{bid}"


def _rotated(config: ModelConfig) -> int:
    share = ModelConfig(config.rope).get(float, "partial_rotary_factor")
    return int(config.head_dim * (config.need(float, "rotary_pct") if share is None else share))


def _base(config: ModelConfig) -> float | None:
    found = ModelConfig(config.rope).get(float, "rope_theta") or config.get(float, "rotary_emb_base")
    return None if found == 10000.0 else found  # the engine's own default


ARCH = Arch(
    name="gptneox",
    gguf="gptneox",
    classes=("GPTNeoXForCausalLM",),
    keys=(
        *CORE,
        LAYER_NORM,
        Key("rope.dimension_count", _rotated, u32),
        Key("rope.freq_base", _base, f32),
        Key("use_parallel_residual", lambda config: config.need(bool, "use_parallel_residual"), boolean),
    ),
    rows=(
        Row("gpt_neox.embed_in.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        *pair("gpt_neox.final_layer_norm", "output_norm", sized("width")),
        Row("embed_out.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *pair(f"{_LAYER}.input_layernorm", "blk.{bid}.attn_norm", sized("width")),
        *qkv_by_head(f"{_LAYER}.attention.query_key_value"),
        *pair(f"{_LAYER}.attention.dense", "blk.{bid}.attn_output", sized("width", "width")),
        *pair(f"{_LAYER}.post_attention_layernorm", "blk.{bid}.ffn_norm", sized("width")),
        *pair(f"{_LAYER}.mlp.dense_h_to_4h", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
        *pair(f"{_LAYER}.mlp.dense_4h_to_h", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
    ),
    drop=(
        f"{_LAYER}.attention.bias",
        f"{_LAYER}.attention.masked_bias",
        f"{_LAYER}.attention.rotary_emb.inv_freq",
    ),
    expect={"hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "attention_bias": (True,)},
    ropes=("default", "dynamic"),
    defaults={"rotary_pct": 0.25, "layer_norm_eps": 1e-5, "use_parallel_residual": True},
    example=decoder("GPTNeoXForCausalLM", hidden_act="gelu"),
)
