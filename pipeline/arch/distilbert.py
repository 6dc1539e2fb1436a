"""DistilBERT: BERT with half the layers and names of its own, without kinds of sentences."""

from dataclasses import replace

from pipeline.arch._rows import pair, sized
from pipeline.arch.bert import ARCH as BERT
from pipeline.arch.bert import EMBEDDINGS, POSITIONS

_LAYER, _SQUARE = "transformer.layer.{bid}", sized("width", "width")

ARCH = replace(
    BERT,
    name="distilbert",
    classes=("DistilBertModel", "DistilBertForMaskedLM"),
    rows=(
        *EMBEDDINGS,
        POSITIONS,
        *pair(f"{_LAYER}.attention.q_lin", "blk.{bid}.attn_q", _SQUARE),
        *pair(f"{_LAYER}.attention.k_lin", "blk.{bid}.attn_k", _SQUARE),
        *pair(f"{_LAYER}.attention.v_lin", "blk.{bid}.attn_v", _SQUARE),
        *pair(f"{_LAYER}.attention.out_lin", "blk.{bid}.attn_output", _SQUARE),
        *pair(f"{_LAYER}.sa_layer_norm", "blk.{bid}.attn_output_norm", sized("width")),
        *pair(f"{_LAYER}.ffn.lin1", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
        *pair(f"{_LAYER}.ffn.lin2", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
        *pair(f"{_LAYER}.output_layer_norm", "blk.{bid}.layer_output_norm", sized("width")),
    ),
    prefixes=(("distilbert.", ""),),
    drop=("embeddings.position_ids",),
    abilities={"vocab_{any}": "guesses of masked words"},
    expect={"activation": ("gelu",)},
    defaults={"type_vocab_size": 1, "layer_norm_eps": 1e-12, "max_position_embeddings": 512},
    example={
        "architectures": ["DistilBertModel"],
        "vocab_size": 448,
        "dim": 64,
        "hidden_dim": 128,
        "n_layers": 2,
        "n_heads": 4,
        "activation": "gelu",
    },
)
