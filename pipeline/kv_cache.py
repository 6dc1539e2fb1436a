"""How much memory llama.cpp takes for what a model remembers of its context, from the keys of the GGUF alone.

For one sequence, in llama.cpp's default types: keys and values in float16, state spaces in float32.  Sources:
llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp, and `load_arch_hparams` of each model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.types import KV

_CELLS = 256  # a cache is padded to a multiple of so many tokens
_BATCH = 512  # n_ubatch: tokens computed at once, which a sliding window must hold beside its own

# Encoders and diffusion models remember nothing.
_NONE = frozenset({
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip

_STATE_SPACES = frozenset({"mamba", "mamba2"})

# Attention in the layers that have key heads, a state in the others (`llama_memory_hybrid`).
_HYBRIDS = frozenset({"jamba", "lfm2"})

# Architectures whose sliding window llama.cpp obeys: of how many layers one has full attention, the last of each group.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4, "exaone4": 4}

# Those that may have the key, and that it computes with full attention all the same.
_FULL = frozenset({"llama", "mistral3", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2", "granite"})

# Keys of caches of another kind: state spaces beside attention, indexers, layers that share, prediction heads.
_OTHER = (
    "ssm.", "wkv.", "kda.", "shortconv.", "attention.indexer.", "attention.shared_kv_layers", "token_shift_count",
    "nextn_predict_layers", "hyper_connection.",
)  # fmt: skip


def kv_cache_bytes(arch: str, metadata: Iterable[KV], context: int) -> int | None:
    """Return the bytes of the cache for *context* tokens, or None where the keys do not tell.

    Args:
        arch: general.architecture.
        metadata: the header's entries.
        context: in tokens; llama.cpp rounds it up to a multiple of 256.
    """
    keys = {kv.key.removeprefix(f"{arch}."): kv.value for kv in metadata if kv.key.startswith(f"{arch}.")}
    n_layers = keys.get("block_count")
    if arch in _NONE:
        return 0
    if not isinstance(n_layers, int):
        return None
    n_cells = -(-context // _CELLS) * _CELLS
    if arch in _STATE_SPACES:
        return _states(keys, n_layers)
    if arch in _HYBRIDS:
        return _hybrid(keys, n_layers, n_cells)
    # The cache of T5 has as many layers as its encoder, though the decoder fills it.
    if any(key.startswith(_OTHER) for key in keys) or keys.get("decoder_block_count", n_layers) != n_layers:
        return None
    slides = _sliding_layers(arch, keys, n_layers)
    return None if slides is None else _attention(keys, slides, n_cells)


def _states(keys: Mapping[str, Any], n_layers: int) -> int | None:
    """Mirror `n_embd_r` and `n_embd_s`: the last inputs of the convolution, and the state; whatever the context."""
    width, kernel = keys.get("embedding_length"), keys.get("shortconv.l_cache")
    if isinstance(width, int) and isinstance(kernel, int):
        return 4 * n_layers * width * (kernel - 1)
    names = ("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size")
    if not all(isinstance(keys.get(name), int) for name in names):
        return None
    kernel, inner, state = (keys[name] for name in names)
    groups = keys.get("ssm.group_count", 0)
    return int(4 * n_layers * ((kernel - 1) * (inner + 2 * groups * state) + state * inner))


def _hybrid(keys: Mapping[str, Any], n_layers: int, n_cells: int) -> int | None:
    heads_kv = _per_layer(keys.get("attention.head_count_kv"), n_layers)
    attention = _attention(keys, [False] * n_layers, n_cells)
    states = None if heads_kv is None else _states(keys, heads_kv.count(0))
    return None if attention is None or states is None else attention + states


def _sliding_layers(arch: str, keys: Mapping[str, Any], n_layers: int) -> list[bool] | None:
    """Say of each layer whether it has a sliding window, as llama.cpp decides; None if that is unknown."""
    if not keys.get("attention.sliding_window") or arch in _FULL:
        return [False] * n_layers
    if arch not in _PERIODS:
        return None
    pattern = keys.get("attention.sliding_window_pattern", _PERIODS[arch])
    if isinstance(pattern, tuple):
        return [bool(slides) for slides in pattern] if len(pattern) == n_layers else None
    return [pattern == 0 or layer % pattern < pattern - 1 for layer in range(n_layers)]


def _attention(keys: Mapping[str, Any], slides: list[bool], n_cells: int) -> int | None:
    n_layers = len(slides)
    heads = _per_layer(keys.get("attention.head_count"), n_layers)
    heads_kv = _per_layer(keys.get("attention.head_count_kv", keys.get("attention.head_count")), n_layers)
    width = keys.get("embedding_length")
    if heads is None or heads_kv is None or not isinstance(width, int) or not heads[0]:
        return None
    is_mla = "attention.key_length_mla" in keys  # only the latent is kept, as keys
    window = min(n_cells, keys.get("attention.sliding_window", 0) + _BATCH)
    total = 0
    for layer, is_sliding in enumerate(slides):
        cells = -(-window // _CELLS) * _CELLS if is_sliding else n_cells
        lengths = [_length(keys, kind, width // heads[0], is_sliding) for kind in ("key", "value")]
        total += 2 * cells * heads_kv[layer] * (lengths[0] if is_mla else sum(lengths))
    return total


def _length(keys: Mapping[str, Any], kind: str, default: int, is_sliding: bool) -> int:
    length = keys.get(f"attention.{kind}_length", default)
    return int(keys.get(f"attention.{kind}_length_swa", length) if is_sliding else length)


def _per_layer(value: Any, n_layers: int) -> list[int] | None:
    if isinstance(value, int):
        return [value] * n_layers
    if isinstance(value, tuple) and len(value) == n_layers:
        return [int(one) for one in value]
    return None
