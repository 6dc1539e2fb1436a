"""Falcon Mamba: Mamba with norms, without weights of their own, on its time steps and on B and C."""

from dataclasses import replace

from pipeline.arch._config import ModelConfig
from pipeline.arch.mamba import ARCH as MAMBA


def _notes(config: ModelConfig) -> tuple[str, ...]:
    inner, outer = config.get(float, "mixer_rms_eps"), config.need(float, "layer_norm_epsilon")
    if inner in (None, outer):
        return ()
    return (f"llama.cpp has one epsilon for all norms, {outer}, this model another within blocks, {inner}",)


ARCH = replace(
    MAMBA,
    name="falcon_mamba",
    classes=("FalconMambaForCausalLM",),
    expect={**MAMBA.expect, "model_type": ("falcon_mamba",)},
    notes=_notes,
    example={**MAMBA.example, "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba"},
)
