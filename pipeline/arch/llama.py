"""Llama 2 and 3, and the many checkpoints that use their layout (SmolLM2, TinyLlama, Yi ...)."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, VOCABULARY
from pipeline.arch._rope import llama3_frequencies
from pipeline.arch._rows import ATTENTION, INV_FREQ, MLP, MLP_BIASES, NORMS, OUTER, OUTPUT_BIAS, QKV_BIASES, interleaved
from pipeline.types import u32

ARCH = Arch(
    name="llama",
    gguf="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    keys=(
        *DECODER,
        VOCABULARY,
        Key("rope.dimension_count", lambda config: config.head_dim, u32),
    ),
    rows=(*OUTER, *NORMS, *interleaved(*ATTENTION, *QKV_BIASES), *OUTPUT_BIAS, *MLP, *MLP_BIASES),
    drop=INV_FREQ,
    expect={"hidden_act": ("silu",)},
    ropes=("default", "linear", "yarn", "dynamic", "llama3"),
    literals=llama3_frequencies,
    example=decoder("LlamaForCausalLM"),
)
