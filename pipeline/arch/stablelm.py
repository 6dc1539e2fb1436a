"""StableLM 3B and 2: norms with biases, part of each head rotates."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import LAYER_NORM, ROPE_DIMENSIONS, UNUSUAL_BASE, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, QKV_BIASES, biases, when
from pipeline.types import boolean

ARCH = Arch(
    name="stablelm",
    gguf="stablelm",
    classes=("StableLmForCausalLM",),
    keys=(
        *without("rope.", "attention.layer_norm_rms_epsilon"),
        ROPE_DIMENSIONS,
        UNUSUAL_BASE,
        Key("use_parallel_residual", lambda config: config.need(bool, "use_parallel_residual"), boolean),
        LAYER_NORM,
    ),
    rows=(*OUTER, *NORMS, *biases(OUTER[1], *NORMS), *ATTENTION, *when("use_qkv_bias", *QKV_BIASES), *MLP),
    drop=INV_FREQ,
    defaults={"use_parallel_residual": False, "partial_rotary_factor": 0.25},
    expect={
        "hidden_act": ("silu",),
        "qk_layernorm": (False,),
        "use_parallel_residual": (False,),
        "tie_word_embeddings": (False,),
    },
    ropes=("default", "dynamic"),
    example=decoder("StableLmForCausalLM", layer_norm_eps=1e-5, partial_rotary_factor=0.25, use_qkv_bias=True),
)
