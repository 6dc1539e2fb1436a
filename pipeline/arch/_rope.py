"""Rotary scaling that needs more than a key."""

from __future__ import annotations

import math

import numpy as np

from pipeline.arch._base import Literal
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError, UnsupportedError

# What llama.cpp takes for the range of YaRN; the keys that say otherwise are read for few architectures only.
_YARN_RANGE = {"beta_fast": 32.0, "beta_slow": 1.0}


def check_rope(config: ModelConfig, name: str, kinds: tuple[str, ...]) -> None:
    """Refuse rotary scaling that the engine does not do for the architecture *name*, which has *kinds*.

    Raises:
        UnsupportedError: if it is of another kind, or has parameters that the engine ignores.
    """
    for rope, allowed in ((config.rope, kinds), (config.rope_local, ("default",))):
        if rope["rope_type"] not in allowed:
            raise UnsupportedError(
                f"rope scaling {rope['rope_type']!r} is not supported for {name!r}",
                where="config.json, rope scaling",
                expected=" or ".join(allowed),
                found=repr(rope["rope_type"])[:80],
                hint="converting without it would give a model that fails on long texts",
            )
    if config.rope["rope_type"] == "yarn":
        for key, value in _YARN_RANGE.items():
            found = config.rope.get(key)
            if found not in (None, value):
                raise UnsupportedError(
                    f"llama.cpp has a YaRN range of its own for {name!r}",
                    where=f"config.json, rope scaling, key {key!r}",
                    expected=value,
                    found=repr(found)[:80],
                    hint="converting without it would give a model that fails on long texts",
                )


def yarn_correction(config: ModelConfig) -> float | None:
    """Find the factor for the attention of YaRN that llama.cpp needs beside the usual one; None where it needs none.

    llama.cpp always scales by 1 + 0.1 ln(factor); transformers (`_compute_yarn_parameters`) by attention_factor where
    config.json has one, or by a quotient where it has mscale and mscale_all_dim.
    """
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] != "yarn":
        return None
    factor = rope.need(float, "factor")
    given = rope.get(float, "attention_factor", "attn_factor")
    mscale, all_dims = rope.get(float, "mscale"), rope.get(float, "mscale_all_dim")
    if given is None and mscale and all_dims:
        given = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dims)
    usual = _yarn_scale(factor, 1.0)
    return None if given is None or math.isclose(given, usual, rel_tol=1e-6) else given / usual


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_factors(config: ModelConfig) -> tuple[Literal, ...]:
    """Give the tables of divisors for long and short texts, one number for a rotary pair, of scaling "longrope"."""
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] not in LONGROPE:
        return ()
    tables = []
    for kind in ("long", "short"):
        values = rope.need(list, f"{kind}_factor")
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v > 0]
        if not len(values) == len(numbers) == config.width_rope // 2:
            raise FormatError(
                "longrope scaling has impossible factors",
                where=f"config.json, rope scaling, key '{kind}_factor'",
                expected=f"{config.width_rope // 2} positive numbers, one for each rotary pair",
                found=f"{len(values)}: {values!r}"[:80],
            )
        tables.append(Literal(f"rope_factors_{kind}.weight", tuple(map(float, values))))
    return tuple(tables)


# "su" is what the first Phi-3 checkpoints call it.
LONGROPE = ("longrope", "su")


def longrope_attention(config: ModelConfig) -> float | None:
    """Compute the factor for the attention of longrope (transformers, `_compute_longrope_parameters`)."""
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] not in LONGROPE:
        return None
    given: float | None = rope.get(float, "attention_factor")
    original = rope.need(int, "original_max_position_embeddings")
    scale = config.need(int, "max_position_embeddings") / original
    if given is not None:
        return given
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


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
