"""T5, Flan-T5, mT5 and UMT5: an encoder and a decoder with relative positions."""

from collections.abc import Sequence

from pipeline.arch._base import Arch, Blocks, Key, Row, every_block
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import number, whole
from pipeline.arch._rows import only, sized
from pipeline.arch._steps import times
from pipeline.types import Shape, f32, u32


def _decoder(config: ModelConfig) -> Sequence[int]:
    names = ("num_decoder_layers", "num_layers", "num_hidden_layers")
    return range(config.within(1, 10_000, *names))


def _if_gated(blocks: Blocks, is_gated: bool) -> Blocks:
    return lambda config: (
        blocks(config) if config.need(str, "feed_forward_proj").startswith("gated") is is_gated else ()
    )


def _with_positions(blocks: Blocks) -> Blocks:
    """Name the blocks that have a relative bias: the first, whose bias serves all, or in UMT5 each."""
    return lambda config: blocks(config) if "UMT5" in config.raw["architectures"][0] else blocks(config)[:1]


def _scaled(config: ModelConfig) -> Sequence[int]:
    """Name a block if the output is scaled before the tied head, as T5 of 2019 does it and llama.cpp does not."""
    return range(int(config.is_tied and config.get(bool, "scale_decoder_outputs") is not False))


def _inner(config: ModelConfig) -> Shape:
    return config.n_heads * config.need(int, "d_kv"), config.width


def _outer(config: ModelConfig) -> Shape:
    return config.width, config.n_heads * config.need(int, "d_kv")


def _attention(source: str, target: str) -> tuple[Row, ...]:
    inner = (Row(f"{source}.{name}.weight", f"{target}_{name}.weight", shape=_inner) for name in "qkv")
    return (*inner, Row(f"{source}.o.weight", f"{target}_o.weight", shape=_outer))


def _norm(source: str, target: str) -> Row:
    return Row(f"{source}layer_norm.weight", f"{target}_norm.weight", shape=sized("width"))


def _side(source: str, target: str, blocks: Blocks, n_layers: int) -> tuple[Row, ...]:
    """Make the rows of the encoder, with two layers in a block, or the decoder, with three."""
    block, blk = f"{source}.block.{{bid}}.layer", f"{target}.blk.{{bid}}"
    last = f"{block}.{n_layers - 1}"
    dense = f"{last}.DenseReluDense"
    bias = Row(f"{block}.0.SelfAttention.relative_attention_bias.weight", f"{blk}.attn_rel_b.weight", shape=_positions)
    gate = Row(f"{dense}.wi_0.weight", f"{blk}.ffn_gate.weight", shape=sized("width_ffn", "width"))
    up = Row(f"{dense}.wi_1.weight", f"{blk}.ffn_up.weight", shape=sized("width_ffn", "width"))
    alone = Row(f"{dense}.wi.weight", f"{blk}.ffn_up.weight", shape=sized("width_ffn", "width"))
    return (
        _norm(f"{source}.final_", f"{target}.output"),
        *only(
            blocks,
            _norm(f"{block}.0.", f"{blk}.attn"),
            *_attention(f"{block}.0.SelfAttention", f"{blk}.attn"),
            _norm(f"{last}.", f"{blk}.ffn"),
            Row(f"{dense}.wo.weight", f"{blk}.ffn_down.weight", shape=sized("width", "width_ffn")),
        ),
        *only(_if_gated(blocks, True), gate, up),
        *only(_if_gated(blocks, False), alone),
        *only(_with_positions(blocks), bias),
    )


def _positions(config: ModelConfig) -> Shape:
    return config.need(int, "relative_attention_num_buckets"), config.n_heads


ARCH = Arch(
    name="t5",
    gguf="t5",
    classes=(
        "T5ForConditionalGeneration",
        "T5WithLMHeadModel",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
    ),
    keys=(
        Key("context_length", lambda config: config.get(int, "n_positions") or 512, u32),
        Key("embedding_length", lambda config: config.width, u32),
        Key("feed_forward_length", lambda config: config.width_ffn, u32),
        Key("block_count", lambda config: config.n_layers, u32),
        Key("decoder_block_count", lambda config: len(_decoder(config)), u32),
        Key("attention.head_count", lambda config: config.n_heads, u32),
        Key("attention.key_length", whole("d_kv"), u32),
        Key("attention.value_length", whole("d_kv"), u32),
        Key("attention.layer_norm_epsilon", number("layer_norm_epsilon"), f32),
        Key("attention.layer_norm_rms_epsilon", number("layer_norm_epsilon"), f32),
        Key("attention.relative_buckets_count", whole("relative_attention_num_buckets"), u32),
        Key("decoder_start_token_id", whole("decoder_start_token_id"), u32),
    ),
    rows=(
        Row("shared.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
        *only(_scaled, Row("shared.weight", "output.weight", (times(lambda config: config.width**-0.5),))),
        *_side("encoder", "enc", every_block, 2),
        *_side("decoder", "dec", _decoder, 3),
        *only(
            _decoder,
            _norm("decoder.block.{bid}.layer.1.", "dec.blk.{bid}.cross_attn"),
            *_attention("decoder.block.{bid}.layer.1.EncDecAttention", "dec.blk.{bid}.cross_attn"),
        ),
    ),
    drop=(
        "encoder.embed_tokens.weight",  # the same as shared.weight
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",  # of old files; nothing reads it
    ),
    expect={
        "feed_forward_proj": ("relu", "gated-gelu"),
        "relative_attention_max_distance": (128,),
        "is_encoder_decoder": (True,),
    },
    ropes=("default",),
    defaults={
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": True,
    },
    example={
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 512,
        "d_model": 64,
        "d_ff": 128,
        "d_kv": 16,
        "num_heads": 4,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
    },
)
