"""Llama's forward pass in plain NumPy (float64), as transformers' modeling_llama and modeling_rope_utils describe it.

For rotary scalings that no golden fixture has: checked itself against a fixture, then the rotary part is exchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def logits(config: dict[str, Any], weights: dict[str, Array], ids: Array) -> Array:
    """Return logits (n_tok, n_vocab) of one prompt; *weights* are by the checkpoint's names."""
    n_heads, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // n_heads
    eps = config["rms_norm_eps"]
    frequencies, scale = rotary(config, width, len(ids))
    angles = np.arange(len(ids))[:, None] * frequencies
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    x = weights["model.embed_tokens.weight"][ids]
    for bid in range(config["num_hidden_layers"]):
        w = {k.split(".", 3)[3]: v for k, v in weights.items() if k.startswith(f"model.layers.{bid}.")}
        h = _norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            (h @ w[f"self_attn.{part}_proj.weight"].T).reshape(len(ids), n, width).swapaxes(0, 1)
            for part, n in (("q", n_heads), ("k", n_kv), ("v", n_kv))
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (np.repeat(a, n_heads // n_kv, axis=0) for a in (k, v))
        weight = _softmax(q @ k.swapaxes(1, 2) / math.sqrt(width) + mask)
        x = x + (weight @ v).swapaxes(0, 1).reshape(len(ids), -1) @ w["self_attn.o_proj.weight"].T
        h = _norm(x, w["post_attention_layernorm.weight"], eps)
        gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return np.asarray(_norm(x, weights["model.norm.weight"], eps) @ head.T)


def rotary(config: dict[str, Any], width: int, n_tokens: int) -> tuple[Array, float]:
    """Return the rotary frequencies (width / 2) of a text and the factor of cosines and sines."""
    rope = dict(config.get("rope_scaling") or {"rope_type": "default"})
    base = 1.0 / config["rope_theta"] ** (np.arange(0, width, 2) / width)
    kind = rope["rope_type"]
    if kind == "default":
        return base, 1.0
    if kind == "linear":
        return base / rope["factor"], 1.0
    if kind == "dynamic":
        return _dynamic(config, width, n_tokens, rope["factor"]), 1.0
    if kind == "llama3":
        return _llama3(base, rope), 1.0
    if kind == "yarn":
        return _yarn(base, config["rope_theta"], width, rope)
    raise ValueError(kind)


def _dynamic(config: dict[str, Any], width: int, n_tokens: int, factor: float) -> Array:
    context = config["max_position_embeddings"]
    grown = factor * max(n_tokens, context) / context - (factor - 1)
    theta = config["rope_theta"] * grown ** (width / (width - 2))
    return np.asarray(1.0 / theta ** (np.arange(0, width, 2) / width))


def _llama3(base: Array, rope: dict[str, Any]) -> Array:
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelength = 2 * math.pi / base
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * base / rope["factor"] + smooth * base
    long = np.where(wavelength > context / low, base / rope["factor"], blended)
    return np.where(wavelength < context / high, base, long)


def _yarn(base: Array, theta: float, width: int, rope: dict[str, Any]) -> tuple[Array, float]:
    def dimension(rotations: float) -> float:
        context = rope["original_max_position_embeddings"]
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def mscale(factor: float, scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    low = max(math.floor(dimension(rope.get("beta_fast", 32))), 0)
    high = min(math.ceil(dimension(rope.get("beta_slow", 1))), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    factor = rope["factor"]
    frequencies = base / factor * ramp + base * (1 - ramp)
    if "attention_factor" in rope:
        return frequencies, rope["attention_factor"]
    if "mscale" in rope:
        return frequencies, mscale(factor, rope["mscale"]) / mscale(factor, rope["mscale_all_dim"])
    return frequencies, mscale(factor, 1.0)


def _norm(x: Array, weight: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
