"""Qwen 1.5, 2 and 2.5: Llama's layout with biases on q, k and v, and rotary halves left as they are."""

from pipeline.arch._base import Arch
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, POOLING
from pipeline.arch._notes import ignored_window
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, NORMS, OUTER, QKV_BIASES, needed

# Embedding models are saved without a head, and then without the name of what has one.
BARE = (("layers.", "model.layers."), ("embed_tokens.", "model.embed_tokens."), ("norm.", "model.norm."))

ARCH = Arch(
    name="qwen2",
    gguf="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    keys=(*DECODER, POOLING),
    rows=(*OUTER, *NORMS, *ATTENTION, *needed(*QKV_BIASES), *MLP),
    prefixes=BARE,
    drop=INV_FREQ,
    defaults={"use_sliding_window": False},
    expect={"hidden_act": ("silu",)},
    notes=ignored_window,
    example=decoder("Qwen2ForCausalLM", rope_theta=1000000.0, tie_word_embeddings=True),
)
