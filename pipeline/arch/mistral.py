"""Mistral 7B, Nemo, Small 2501 and Ministral 8B: Llama's layout; a sliding window is not in the engine."""

from dataclasses import replace

from pipeline.arch._example import decoder
from pipeline.arch._notes import ignored_window
from pipeline.arch.llama import ARCH as LLAMA

ARCH = replace(
    LLAMA,
    name="mistral",
    classes=("MistralForCausalLM",),
    notes=ignored_window,
    example=decoder("MistralForCausalLM", head_dim=16, sliding_window=None),
)
