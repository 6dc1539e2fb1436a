"""LFM2: blocks of short convolutions and of attention in turn."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, ROPE, VOCABULARY, integers, number, whole
from pipeline.arch._rows import ATTENTION, OUTER, only, sized
from pipeline.arch._steps import squeeze
from pipeline.types import Shape, f32, u32

_LAYER = "model.layers.{bid}"


def _attends(config: ModelConfig) -> list[int]:
    old = config.get(list, "full_attn_idxs")
    kinds = config.layer_types
    return [bid for bid in range(config.n_layers) if (kinds[bid] != "conv" if kinds else bid in (old or ()))]


def _convolves(config: ModelConfig) -> list[int]:
    return [bid for bid in range(config.n_layers) if bid not in _attends(config)]


def _heads_kv(config: ModelConfig) -> list[int]:
    return [config.n_heads_kv if bid in _attends(config) else 0 for bid in range(config.n_layers)]


def _width_ffn(config: ModelConfig) -> int:
    """Find the inner width, which config.json has before the family's own adjustment."""
    width = config.within(1, 1 << 24, "block_ff_dim", "intermediate_size")
    if config.get(bool, "block_auto_adjust_ff_dim"):
        scaled = int((config.get(float, "block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        step = config.within(1, 1 << 20, "block_multiple_of")
        width = step * -(-scaled // step)
    return width


def _up(config: ModelConfig) -> Shape:
    return _width_ffn(config), config.width


def _down(config: ModelConfig) -> Shape:
    return config.width, _width_ffn(config)


ARCH = Arch(
    name="lfm2",
    gguf="lfm2",
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    keys=(
        *(key for key in CORE if key.name != "feed_forward_length"),
        Key("feed_forward_length", _width_ffn, u32),
        Key("attention.head_count_kv", _heads_kv, integers),
        *ROPE,
        Key("attention.layer_norm_rms_epsilon", number("norm_eps"), f32),
        VOCABULARY,
        Key("shortconv.l_cache", whole("conv_L_cache"), u32),
    ),
    rows=(
        OUTER[0],
        OUTER[2],
        Row("model.embedding_norm.weight", "token_embd_norm.weight", shape=sized("width")),
        Row(f"{_LAYER}.operator_norm.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
        Row(f"{_LAYER}.ffn_norm.weight", "blk.{bid}.ffn_norm.weight", shape=sized("width")),
        *only(
            _attends,
            *ATTENTION[:3],
            Row(f"{_LAYER}.self_attn.out_proj.weight", "blk.{bid}.attn_output.weight", shape=sized("width", "width_q")),
            Row(f"{_LAYER}.self_attn.q_layernorm.weight", "blk.{bid}.attn_q_norm.weight", shape=sized("head_dim")),
            Row(f"{_LAYER}.self_attn.k_layernorm.weight", "blk.{bid}.attn_k_norm.weight", shape=sized("head_dim")),
        ),
        *only(
            _convolves,
            Row(
                f"{_LAYER}.conv.conv.weight",
                "blk.{bid}.shortconv.conv.weight",
                (squeeze,),
                shape=lambda c: (c.width, c.need(int, "conv_L_cache")),
            ),
            Row(
                f"{_LAYER}.conv.in_proj.weight",
                "blk.{bid}.shortconv.in_proj.weight",
                shape=lambda c: (3 * c.width, c.width),
            ),
            Row(f"{_LAYER}.conv.out_proj.weight", "blk.{bid}.shortconv.out_proj.weight", shape=sized("width", "width")),
        ),
        Row(f"{_LAYER}.feed_forward.w1.weight", "blk.{bid}.ffn_gate.weight", shape=_up),
        Row(f"{_LAYER}.feed_forward.w3.weight", "blk.{bid}.ffn_up.weight", shape=_up),
        Row(f"{_LAYER}.feed_forward.w2.weight", "blk.{bid}.ffn_down.weight", shape=_down),
    ),
    expect={"conv_bias": (False,)},
    defaults={"block_multiple_of": 256, "norm_eps": 1e-5, "tie_word_embeddings": True},
    example=decoder("Lfm2ForCausalLM", norm_eps=1e-5, conv_L_cache=3, layer_types=["conv", "full_attention"]),
)
