"""OLMoE: experts, and norms on all queries and keys together."""

from pipeline.arch._base import Arch, Row
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER
from pipeline.arch._keys import EXPERTS as EXPERT_KEYS
from pipeline.arch._rows import ATTENTION, EXPERTS, INV_FREQ, NORMS, OUTER, sized

ARCH = Arch(
    name="olmoe",
    gguf="olmoe",
    classes=("OlmoeForCausalLM",),
    keys=(*DECODER, *EXPERT_KEYS),
    rows=(
        *OUTER,
        *NORMS,
        *ATTENTION,
        Row("model.layers.{bid}.self_attn.q_norm.weight", "blk.{bid}.attn_q_norm.weight", shape=sized("width_q")),
        Row("model.layers.{bid}.self_attn.k_norm.weight", "blk.{bid}.attn_k_norm.weight", shape=sized("width_kv")),
        *EXPERTS,
    ),
    drop=INV_FREQ,
    defaults={"norm_topk_prob": False},
    expect={
        "hidden_act": ("silu",),
        "norm_topk_prob": (False,),
        "clip_qkv": (None,),
        "tie_word_embeddings": (False,),
    },
    example=decoder("OlmoeForCausalLM", num_key_value_heads=4, num_experts=4, num_experts_per_tok=2),
)
