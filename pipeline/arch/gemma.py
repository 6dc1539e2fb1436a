"""Gemma 1 and CodeGemma: Llama's layout with norms that multiply by (1 + weight)."""

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import UNUSUAL_BASE, without
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, with_step
from pipeline.arch._steps import plus_one

ARCH = Arch(
    name="gemma",
    gguf="gemma",
    classes=("GemmaForCausalLM",),
    keys=(*without("rope."), UNUSUAL_BASE),
    rows=(OUTER[0], *with_step(plus_one, OUTER[1], *NORMS), *ATTENTION, *MLP),
    drop=INV_FREQ,
    defaults={"tie_word_embeddings": True, "head_dim": 256},
    expect={
        "hidden_act": ("gelu", "gelu_pytorch_tanh"),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False,),
    },
    ropes=("default",),
    example=decoder("GemmaForCausalLM", hidden_act="gelu_pytorch_tanh", head_dim=16, tie_word_embeddings=True),
)
