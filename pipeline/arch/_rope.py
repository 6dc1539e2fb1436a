"""Rotary scaling that needs more than a key."""

from __future__ import annotations

import math

import numpy as np

from pipeline.arch._base import Literal
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError


def llama3_frequencies(config: ModelConfig) -> tuple[Literal, ...]:
    """Compute rope_freqs.weight, one divisor for each rotary pair, where the scaling is of the kind "llama3".

    Long wave lengths are divided by the factor, short ones kept, those between blended (transformers,
    `_compute_llama3_parameters`).  All steps are float32, as the reference computes them.
    """
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] != "llama3":
        return ()
    factor, low, high = (rope.need(float, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = rope.need(int, "original_max_position_embeddings")
    if min(factor, low, high, context) <= 0 or low == high:
        raise FormatError(
            "llama3 rope scaling has impossible factors",
            where="config.json, rope scaling",
            expected="positive numbers, low_freq_factor below high_freq_factor",
            found=f"factor {factor}, low {low}, high {high}, context {context}",
        )
    width = config.head_dim
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    wavelength = np.float32(2 * math.pi) * np.power(np.float32(rope.need(float, "rope_theta")), exponent)
    smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
    blended = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    divisors = np.where(
        wavelength < context / high, np.float32(1), np.where(wavelength > context / low, np.float32(factor), blended)
    )
    return (Literal("rope_freqs.weight", tuple(float(d) for d in divisors)),)
