"""Rows that many architectures share: names of transformers on the left, of llama.cpp on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.arch._base import Blocks, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._steps import Step, interleave_heads, part, ungroup
from pipeline.types import Shape


def sized(*names: str) -> Callable[[ModelConfig], Shape]:
    """Make a shape of sizes that ModelConfig has by these names."""
    return lambda config: tuple(int(getattr(config, name)) for name in names)


OUTER = (
    Row("model.embed_tokens.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
    Row("model.norm.weight", "output_norm.weight", shape=sized("width")),
    Row("lm_head.weight", "output.weight", optional=True, shape=sized("n_vocab", "width")),
)

_Q, _K = "model.layers.{bid}.self_attn.q_proj", "model.layers.{bid}.self_attn.k_proj"
_V, _O = "model.layers.{bid}.self_attn.v_proj", "model.layers.{bid}.self_attn.o_proj"

ATTENTION = (
    Row(f"{_Q}.weight", "blk.{bid}.attn_q.weight", shape=sized("width_q", "width")),
    Row(f"{_K}.weight", "blk.{bid}.attn_k.weight", shape=sized("width_kv", "width")),
    Row(f"{_V}.weight", "blk.{bid}.attn_v.weight", shape=sized("width_kv", "width")),
    Row(f"{_O}.weight", "blk.{bid}.attn_output.weight", shape=sized("width", "width_q")),
)

QKV_BIASES = (
    Row(f"{_Q}.bias", "blk.{bid}.attn_q.bias", optional=True, shape=sized("width_q")),
    Row(f"{_K}.bias", "blk.{bid}.attn_k.bias", optional=True, shape=sized("width_kv")),
    Row(f"{_V}.bias", "blk.{bid}.attn_v.bias", optional=True, shape=sized("width_kv")),
)

OUTPUT_BIAS = (Row(f"{_O}.bias", "blk.{bid}.attn_output.bias", optional=True, shape=sized("width")),)

QK_NORMS = (
    Row("model.layers.{bid}.self_attn.q_norm.weight", "blk.{bid}.attn_q_norm.weight", shape=sized("head_dim")),
    Row("model.layers.{bid}.self_attn.k_norm.weight", "blk.{bid}.attn_k_norm.weight", shape=sized("head_dim")),
)

NORMS = (
    Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", shape=sized("width")),
    Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight", shape=sized("width")),
)

MLP = (
    Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight", shape=sized("width_ffn", "width")),
    Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight", shape=sized("width_ffn", "width")),
    Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight", shape=sized("width", "width_ffn")),
)

MLP_BIASES = (
    Row("model.layers.{bid}.mlp.gate_proj.bias", "blk.{bid}.ffn_gate.bias", optional=True, shape=sized("width_ffn")),
    Row("model.layers.{bid}.mlp.up_proj.bias", "blk.{bid}.ffn_up.bias", optional=True, shape=sized("width_ffn")),
    Row("model.layers.{bid}.mlp.down_proj.bias", "blk.{bid}.ffn_down.bias", optional=True, shape=sized("width")),
)

# Names of the language model within a multimodal one, of transformers 4 and 5, and of what is beside it.
LANGUAGE_MODEL = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
VISION = {
    f"{outer}{part_}.{{any}}": "vision"
    for outer in ("", "model.")
    for part_ in ("vision_tower", "multi_modal_projector")
}

# Buffers that checkpoints of transformers before 4.31 carry.
INV_FREQ = ("model.layers.{bid}.self_attn.rotary_emb.inv_freq",)


def experts(block: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """Make the rows of a block's experts, in both layouts: a tensor for each, or (transformers 5) all in two tensors.

    *block* is the name of the feed-forward network within a layer; *gate*, *up* and *down* are names within an expert.
    """
    layer = f"model.layers.{{bid}}.{block}.experts"
    inner, outer = sized("n_experts", "width_expert", "width"), sized("n_experts", "width", "width_expert")
    fused = "model.layers.{bid}.mlp.experts.gate_up_proj"
    return (
        Row(f"{layer}.{{xid}}.{gate}.weight", "blk.{bid}.ffn_gate_exps.weight", shape=inner),
        Row(f"{layer}.{{xid}}.{up}.weight", "blk.{bid}.ffn_up_exps.weight", shape=inner),
        Row(f"{layer}.{{xid}}.{down}.weight", "blk.{bid}.ffn_down_exps.weight", shape=outer),
        Row(fused, "blk.{bid}.ffn_gate_exps.weight", (part(0, 2),), shape=inner),
        Row(fused, "blk.{bid}.ffn_up_exps.weight", (part(1, 2),), shape=inner),
        Row("model.layers.{bid}.mlp.experts.down_proj", "blk.{bid}.ffn_down_exps.weight", shape=outer),
    )


ROUTER = Row("model.layers.{bid}.mlp.gate.weight", "blk.{bid}.ffn_gate_inp.weight", shape=sized("n_experts", "width"))
EXPERTS = (ROUTER, *experts("mlp", "gate_proj", "up_proj", "down_proj"))


def with_step(step: Step, *rows: Row) -> tuple[Row, ...]:
    """Give *rows* one more step."""
    return tuple(replace(row, steps=(*row.steps, step)) for row in rows)


def interleaved(*rows: Row) -> tuple[Row, ...]:
    """Give *rows*, those of queries and keys with their rotary pairs in the order of ggml's "normal" rope."""
    heads = {"attn_q": "n_heads", "attn_k": "n_heads_kv"}
    return tuple(
        with_step(interleave_heads(heads[row.kind]), row)[0] if row.kind in heads else row  # the others as they are
        for row in rows
    )


def needed(*rows: Row) -> tuple[Row, ...]:
    """Give *rows* as ones that must be there."""
    return tuple(replace(row, optional=False) for row in rows)


def gated(source: str, ending: str, width: Callable[[ModelConfig], int]) -> tuple[Row, ...]:
    """Make the rows of a gated feed-forward network *width* wide; "shexp" as *ending* gives ffn_gate_shexp, ..."""
    return (
        Row(f"{source}.gate_proj.weight", f"blk.{{bid}}.ffn_gate_{ending}.weight", shape=lambda c: (width(c), c.width)),
        Row(f"{source}.up_proj.weight", f"blk.{{bid}}.ffn_up_{ending}.weight", shape=lambda c: (width(c), c.width)),
        Row(f"{source}.down_proj.weight", f"blk.{{bid}}.ffn_down_{ending}.weight", shape=lambda c: (c.width, width(c))),
    )


def qkv_by_head(source: str) -> tuple[Row, ...]:
    """Make the rows of queries, keys and values that are fused head by head, with a bias."""
    steps = (ungroup(lambda config: (config.head_dim,) * 3),)
    return (
        Row(f"{source}.weight", "blk.{bid}.attn_qkv.weight", steps, shape=lambda c: (3 * c.width, c.width)),
        Row(f"{source}.bias", "blk.{bid}.attn_qkv.bias", steps, shape=lambda c: (3 * c.width,)),
    )


def maybe(*rows: Row) -> tuple[Row, ...]:
    """Give *rows* as ones that may be absent."""
    return tuple(replace(row, optional=True) for row in rows)


def only(blocks: Blocks, *rows: Row) -> tuple[Row, ...]:
    """Give *rows*, for some blocks alone."""
    return tuple(replace(row, blocks=blocks) for row in rows)


def pair(
    source: str, target: str, shape: Callable[[ModelConfig], Shape], steps: tuple[Step, ...] = ()
) -> tuple[Row, ...]:
    """Make the rows of a weight and its bias; *shape* is the weight's, *steps* are for it alone."""
    weight = Row(f"{source}.weight", f"{target}.weight", steps, shape=shape)
    return (weight, *biases(weight))


def when(key: str, *rows: Row) -> tuple[Row, ...]:
    """Give *rows* as ones that a checkpoint has if config.json's *key* is true, and only then."""

    def blocks(config: ModelConfig) -> Sequence[int]:
        return range(config.n_layers) if config.get(bool, key) else ()

    return tuple(replace(row, optional=False, blocks=blocks) for row in rows)


def biases(*rows: Row) -> tuple[Row, ...]:
    """Make the rows of the biases that belong to the weights of *rows*, vectors as long as their first dimension."""
    return tuple(_bias(row) for row in rows)


def _bias(row: Row) -> Row:
    def shape(config: ModelConfig) -> Shape:
        return row.shape(config)[:1] if row.shape else ()

    source, target = (name.removesuffix("weight") + "bias" for name in (row.patterns[0], row.target))
    return Row(source, target, shape=shape if row.shape else None)
