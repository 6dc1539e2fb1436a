"""OLMo 2 and 3: norms after attention and feed-forward instead of before, and on all queries and keys together."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, booleans, maybe_whole
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, OUTER, sized
from pipeline.types import u32


def _slides(config: ModelConfig) -> list[bool] | None:
    if config.get(int, "sliding_window") is None:
        return None
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    return slides or [(bid + 1) % 4 != 0 for bid in range(config.n_layers)]


_LAYER = "model.layers.{bid}"

ARCH = Arch(
    name="olmo2",
    gguf="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    keys=(
        *DECODER,
        Key("attention.sliding_window", maybe_whole("sliding_window"), u32),
        Key("attention.sliding_window_pattern", _slides, booleans),
    ),
    rows=(
        *OUTER,
        *ATTENTION,
        *MLP,
        Row(f"{_LAYER}.self_attn.q_norm.weight", "blk.{bid}.attn_q_norm.weight", shape=sized("width_q")),
        Row(f"{_LAYER}.self_attn.k_norm.weight", "blk.{bid}.attn_k_norm.weight", shape=sized("width_kv")),
        Row(f"{_LAYER}.post_attention_layernorm.weight", "blk.{bid}.post_attention_norm.weight", shape=sized("width")),
        Row(f"{_LAYER}.post_feedforward_layernorm.weight", "blk.{bid}.post_ffw_norm.weight", shape=sized("width")),
    ),
    drop=INV_FREQ,
    expect={"hidden_act": ("silu",), "tie_word_embeddings": (False,)},
    example=decoder("Olmo2ForCausalLM", num_key_value_heads=4),
)
