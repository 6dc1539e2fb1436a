"""Qwen3: like Qwen2 with a norm on each query and key head instead of biases."""

from dataclasses import replace

from pipeline.arch._example import decoder
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QK_NORMS
from pipeline.arch.qwen2 import ARCH as QWEN2

ARCH = replace(
    QWEN2,
    name="qwen3",
    gguf="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    rows=(*OUTER, *NORMS, *ATTENTION, *QK_NORMS, *MLP),
    example=decoder("Qwen3ForCausalLM", head_dim=32, tie_word_embeddings=True),
)
