"""Command R and Aya 23: attention and feed-forward beside each other, one norm for both, logits scaled."""

from pipeline.arch._base import Arch, Key, Row
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import LAYER_NORM, LOGIT_SCALE, NO_SCALING, whole, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, sized, when
from pipeline.types import u32

_NORMS = (
    Row(
        "model.layers.{bid}.self_attn.q_norm.weight", "blk.{bid}.attn_q_norm.weight", shape=sized("n_heads", "head_dim")
    ),
    Row(
        "model.layers.{bid}.self_attn.k_norm.weight",
        "blk.{bid}.attn_k_norm.weight",
        shape=sized("n_heads_kv", "head_dim"),
    ),
)


def _has_norms(config: ModelConfig) -> tuple[bool]:
    return (config.n_layers >= 64,)  # how the engine tells Command R+


ARCH = Arch(
    name="cohere",
    gguf="command-r",
    classes=("CohereForCausalLM",),
    keys=(
        *without("rope.scaling.", "attention.layer_norm_rms_epsilon", "context_length"),
        # The one is what Command R was trained for, the other what its authors' machines could hold.
        Key("context_length", whole("model_max_length", "max_position_embeddings"), u32),
        LAYER_NORM,
        LOGIT_SCALE,
        NO_SCALING,
    ),
    rows=(OUTER[0], OUTER[1], NORMS[0], *ATTENTION, *MLP, *when("use_qk_norm", *_NORMS)),
    drop=INV_FREQ,
    defaults={"tie_word_embeddings": True, "use_qk_norm": False},
    expect={"hidden_act": ("silu",), "tie_word_embeddings": (True,), "use_qk_norm": _has_norms},
    ropes=("default",),
    example=decoder("CohereForCausalLM", layer_norm_eps=1e-5, logit_scale=0.0625, tie_word_embeddings=True),
)
