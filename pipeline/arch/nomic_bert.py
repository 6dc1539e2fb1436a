"""Nomic's BERT: rotary positions, a gated feed-forward network, no biases but those of norms."""

from dataclasses import replace

from pipeline.arch._base import Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._keys import maybe_whole, rope_theta
from pipeline.arch._rows import pair, sized
from pipeline.arch.bert import ARCH as BERT
from pipeline.arch.bert import ENCODER, TYPES
from pipeline.types import f32, u32

_LAYER = "encoder.layers.{bid}"


def _context(config: ModelConfig) -> int:
    """Find the length the model was trained for; config.json may have room for more."""
    positions = config.get(int, "max_position_embeddings")
    if positions is None:
        positions = min(config.need(int, "n_positions"), config.need(int, "max_trained_positions"))
    return int(positions)


ARCH = replace(
    BERT,
    name="nomic_bert",
    gguf="nomic-bert",
    classes=("NomicBertModel",),
    keys=(
        *(replace(key, get=_context) if key.name == "context_length" else key for key in ENCODER),
        Key("rope.freq_base", lambda config: rope_theta(config) or config.need(float, "rotary_emb_base"), f32),
        Key("attention.key_length", maybe_whole("head_dim"), u32),
        Key("attention.value_length", maybe_whole("head_dim"), u32),
    ),
    rows=(
        Row("embeddings.word_embeddings.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
        TYPES,
        *pair("emb_ln", "token_embd_norm", sized("width")),
        Row(f"{_LAYER}.attn.Wqkv.weight", "blk.{bid}.attn_qkv.weight", shape=lambda c: (3 * c.width, c.width)),
        Row(f"{_LAYER}.attn.out_proj.weight", "blk.{bid}.attn_output.weight", shape=sized("width", "width")),
        *pair(f"{_LAYER}.norm1", "blk.{bid}.attn_output_norm", sized("width")),
        Row(f"{_LAYER}.mlp.fc11.weight", "blk.{bid}.ffn_up.weight", shape=sized("width_ffn", "width")),
        Row(f"{_LAYER}.mlp.fc12.weight", "blk.{bid}.ffn_gate.weight", shape=sized("width_ffn", "width")),
        Row(f"{_LAYER}.mlp.fc2.weight", "blk.{bid}.ffn_down.weight", shape=sized("width", "width_ffn")),
        *pair(f"{_LAYER}.norm2", "blk.{bid}.layer_output_norm", sized("width")),
    ),
    prefixes=(),
    spellings={},
    drop=(),
    abilities={},
    expect={
        "activation_function": ("swiglu",),
        "moe_every_n_layers": (0,),
        "causal": (False,),
        "prenorm": (False,),
        "parallel_block": (False,),
        "use_rms_norm": (False,),
        "qkv_proj_bias": (False,),
        "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
    },
    ropes=("default",),
    defaults={"type_vocab_size": 2, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048},
    example={
        "architectures": ["NomicBertModel"],
        "vocab_size": 448,
        "n_embd": 64,
        "n_inner": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 8192,
        "rotary_emb_base": 1000,
        "activation_function": "swiglu",
    },
)
