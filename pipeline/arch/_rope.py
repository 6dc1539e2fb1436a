"""Rotary scaling that needs more than a key."""

from __future__ import annotations

import math

import numpy as np

from pipeline.arch._base import Literal
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import to_float32

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


def unscaled_context(config: ModelConfig) -> int | None:
    """Find how many tokens of a text dynamic scaling leaves as they are; None for every other kind.

    It changes the base only for texts longer than that (transformers, `_compute_dynamic_ntk_parameters`).  With "alpha"
    it is another thing under the same name: a base that is changed once for all texts.
    """
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] != "dynamic" or "alpha" in rope.raw:
        return None
    original: int | None = rope.get(int, "original_max_position_embeddings")
    return original or int(config.need(int, "max_position_embeddings"))


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
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < math.inf]
        if not len(values) == len(numbers) == config.width_rope // 2:
            raise FormatError(
                "longrope scaling has impossible factors",
                where=f"config.json, rope scaling, key '{kind}_factor'",
                expected=f"{config.width_rope // 2} positive numbers, one for each rotary pair",
                found=f"{len(values)}: {values!r}"[:80],
            )
        where = f"config.json, rope scaling, key '{kind}_factor'"
        tables.append(Literal(f"rope_factors_{kind}.weight", tuple(to_float32(where, v) for v in values)))
    return tuple(tables)


# "su" is what the first Phi-3 checkpoints call it.
LONGROPE = ("longrope", "su")


def longrope_attention(config: ModelConfig) -> float | None:
    """Compute the factor for the attention of longrope (transformers, `_compute_longrope_parameters`)."""
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] not in LONGROPE:
        return None
    given: float | None = rope.get(float, "attention_factor")
    if given is not None:
        return given
    original = rope.need(int, "original_max_position_embeddings")
    context = config.need(int, "max_position_embeddings")
    if not (1 < original < 1 << 32 and 0 < context < 1 << 32):
        raise FormatError(
            "longrope scaling has an impossible context",
            where="config.json, keys 'original_max_position_embeddings' and 'max_position_embeddings'",
            expected="more than one token, in 32 bits",
            found=f"{original} and {context}"[:80],
        )
    scale = context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def llama3_frequencies(config: ModelConfig) -> tuple[Literal, ...]:
    """Compute rope_freqs.weight, one divisor for each rotary pair, where the scaling is of the kind "llama3".

    Long wave lengths are divided by the factor, short ones kept, those between blended (transformers,
    `_compute_llama3_parameters`).  All steps are float32, as the reference computes them.
    """
    rope = ModelConfig(config.rope)
    if rope.raw["rope_type"] != "llama3":
        return ()
    factor, low, high, context, theta = numbers = [
        rope.need(float, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta")
    ]
    divisors = _llama3_divisors(config.head_dim, *numbers) if min(numbers) > 0 and low < high else np.zeros(1)
    if not np.all(np.isfinite(divisors) & (divisors > 0)):
        raise FormatError(
            "llama3 rope scaling has impossible factors",
            where="config.json, rope scaling",
            expected="positive numbers, low_freq_factor below high_freq_factor",
            found=f"factor {factor}, low {low}, high {high}, context {context}, theta {theta}",
        )
    return (Literal("rope_freqs.weight", tuple(float(d) for d in divisors)),)


def _llama3_divisors(width: int, factor: float, low: float, high: float, context: float, theta: float) -> np.ndarray:
    """Compute the divisors, float32 (width / 2); what cannot be computed is not finite."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    with np.errstate(all="ignore"):
        wavelength = np.float32(2 * math.pi) * np.power(np.float32(theta), exponent)
        smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
        blended = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
        long = np.where(wavelength > context / low, np.float32(factor), blended)
        return np.where(wavelength < context / high, np.float32(1), long)
