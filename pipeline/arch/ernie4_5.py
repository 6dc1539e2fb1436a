"""ERNIE 4.5 without experts: Llama's layout, whose rotary pairs are neighbours already."""

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER

ARCH = Arch(
    name="ernie4_5",
    gguf="ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    keys=DECODER,
    rows=(*OUTER, *NORMS, *ATTENTION, *MLP),
    defaults={"tie_word_embeddings": True},
    expect={"hidden_act": ("silu",), "use_bias": (False,)},
    example=decoder("Ernie4_5ForCausalLM", head_dim=16, tie_word_embeddings=True),
)
