"""A plan as plain values, for `plan` and `--dry-run`: types, sizes, disk, memory; nothing is read but headers."""

from __future__ import annotations

import shutil
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from pipeline.blueprint import Blueprint
from pipeline.encode import memory_bytes, usable_cores
from pipeline.flow import Prepared
from pipeline.plan import make_plan
from pipeline.store import local_store_root


def describe_plan(prepared: Prepared, recipe: str, context: int) -> dict[str, Any]:
    """Describe the file that *recipe* would give: sizes in bytes, shapes row-major.

    *context*, in tokens, is what the KV cache is estimated for; it never exceeds what the model was trained for.
    """
    plan = make_plan(prepared.blueprint, recipe)
    parameters = prepared.blueprint.n_parameters
    tokens = min(context, _number(prepared.blueprint, "context_length") or context)
    return {
        "model": prepared.source.name,
        "recipe": plan.recipe,
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "n_bytes": t.n_bytes} for t in plan.tensors
        ],
        "types": dict(Counter(t.type for t in plan.tensors)),
        "parameters": parameters,
        "file_bytes": plan.file_bytes,
        "bits_per_weight": 8 * sum(t.n_bytes for t in plan.tensors) / parameters,
        "disk_free": shutil.disk_usage(_existing(local_store_root())).free,
        "memory_bytes": memory_bytes([plan], usable_cores()),
        "kv_cache_context": tokens,
        "kv_cache_bytes": _kv_cache_bytes(prepared.blueprint, tokens),
        "notes": list(plan.notes),
    }


def _kv_cache_bytes(blueprint: Blueprint, tokens: int) -> int | None:
    """Estimate the KV cache in float16, as llama.cpp allocates it for plain attention."""
    layers, width = _number(blueprint, "block_count"), _number(blueprint, "embedding_length")
    heads, heads_kv = blueprint.model.n_head, blueprint.model.n_head_kv
    if not (layers and width and heads and heads_kv):
        return None
    per_head = _number(blueprint, "attention.key_length") or width // heads
    return prod((2, 2, layers, heads_kv, per_head, tokens))  # keys and values, two bytes each


def _number(blueprint: Blueprint, key: str) -> int | None:
    wanted = f"{blueprint.model.arch}.{key}"
    return next((int(kv.value) for kv in blueprint.metadata if kv.key == wanted), None)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
