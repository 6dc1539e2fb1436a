"""Rows that many architectures share."""

from __future__ import annotations

from dataclasses import replace

from pipeline.arch._base import Blocks, Row
from pipeline.arch._steps import Step


def pair(source: str, target: str, steps: tuple[Step, ...] = (), *, optional: bool = False) -> tuple[Row, Row]:
    """Make the rows of a weight and a bias; *steps* are for both, an *optional* bias may be absent."""
    return (
        Row(f"{source}.weight", f"{target}.weight", steps),
        Row(f"{source}.bias", f"{target}.bias", steps, optional=optional),
    )


OUTER = (
    Row("model.embed_tokens.weight", "token_embd.weight"),
    Row("model.norm.weight", "output_norm.weight"),
    Row("lm_head.weight", "output.weight", optional=True),
)

NORMS = (
    Row("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight"),
    Row("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight"),
)

MLP = (
    Row("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight"),
    Row("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight"),
    Row("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight"),
)

EXPERTS = (
    Row("model.layers.{bid}.mlp.gate.weight", "blk.{bid}.ffn_gate_inp.weight"),
    Row("model.layers.{bid}.mlp.experts.{xid}.gate_proj.weight", "blk.{bid}.ffn_gate_exps.weight"),
    Row("model.layers.{bid}.mlp.experts.{xid}.up_proj.weight", "blk.{bid}.ffn_up_exps.weight"),
    Row("model.layers.{bid}.mlp.experts.{xid}.down_proj.weight", "blk.{bid}.ffn_down_exps.weight"),
)


def only(blocks: Blocks, *rows: Row) -> tuple[Row, ...]:
    """Give *rows*, for some blocks alone."""
    return tuple(replace(row, blocks=blocks) for row in rows)
