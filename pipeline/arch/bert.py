"""BERT and many embedding models with its layout (bge, e5, gte, MiniLM ...): an encoder, normalized after each sum."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, LAYER_NORM, POOLING, TOKEN_TYPES
from pipeline.arch._rows import pair, sized
from pipeline.types import boolean

_LAYER, _SQUARE = "encoder.layer.{bid}", sized("width", "width")

EMBEDDINGS = (
    Row("embeddings.word_embeddings.weight", "token_embd.weight", shape=sized("n_vocab", "width")),
    *pair("embeddings.LayerNorm", "token_embd_norm", sized("width")),
)
TYPES = Row(
    "embeddings.token_type_embeddings.weight",
    "token_types.weight",
    shape=lambda config: (config.need(int, "type_vocab_size"), config.width),
)
POSITIONS = Row(
    "embeddings.position_embeddings.weight",
    "position_embd.weight",
    shape=lambda config: (config.need(int, "max_position_embeddings"), config.width),
)
BLOCKS = (
    *pair(f"{_LAYER}.attention.self.query", "blk.{bid}.attn_q", _SQUARE),
    *pair(f"{_LAYER}.attention.self.key", "blk.{bid}.attn_k", _SQUARE),
    *pair(f"{_LAYER}.attention.self.value", "blk.{bid}.attn_v", _SQUARE),
    *pair(f"{_LAYER}.attention.output.dense", "blk.{bid}.attn_output", _SQUARE),
    *pair(f"{_LAYER}.attention.output.LayerNorm", "blk.{bid}.attn_output_norm", sized("width")),
    *pair(f"{_LAYER}.intermediate.dense", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
    *pair(f"{_LAYER}.output.dense", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
    *pair(f"{_LAYER}.output.LayerNorm", "blk.{bid}.layer_output_norm", sized("width")),
)
ENCODER = (*CORE, LAYER_NORM, Key("attention.causal", lambda _config: False, boolean), POOLING, TOKEN_TYPES)

ARCH = Arch(
    name="bert",
    gguf="bert",
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    keys=ENCODER,
    rows=(*EMBEDDINGS, TYPES, POSITIONS, *BLOCKS),
    prefixes=(("bert.", ""),),
    spellings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    drop=("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    abilities={"cls.{any}": "guesses of masked words and next sentences"},
    expect={
        "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    ropes=("default",),
    defaults={"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    example=decoder("BertModel", hidden_act="gelu"),
)
