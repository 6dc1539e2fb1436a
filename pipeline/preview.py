"""A plan as plain values, for `plan` and `--dry-run`: types, sizes, disk, memory, time; nothing is read but headers."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline import data, machine
from pipeline.blueprint import Blueprint
from pipeline.errors import PipelineError, ResourceError
from pipeline.estimate import bytes_to_write, seconds_to_write
from pipeline.job import Prepared
from pipeline.kv_cache import kv_cache_bytes
from pipeline.plan import make_plan
from pipeline.store import local_store_root
from pipeline.tuning import Tuning
from pipeline.types import Plan

_SHOWN = 20  # names of dropped tensors


def describe_plan(
    prepared: Prepared, recipe: str, context: int, threads: int = 0, tuning: Tuning | None = None
) -> dict[str, Any]:
    """Describe the file that *recipe* would give: sizes in bytes, shapes row-major, times in seconds.

    *tuning* changes the recipe.  *context*, in tokens, is what the KV cache is estimated for; it never exceeds what the
    model was trained for.
    Memory and time are estimates for this machine with *threads* workers; "kv_cache_bytes" is None where the header
    does not tell.
    """
    plan = make_plan(prepared.blueprint, recipe, tuning)
    parameters = prepared.blueprint.n_parameters
    tokens = min(context, _trained_for(prepared.blueprint) or context)
    cache = kv_cache_bytes(prepared.blueprint.model.arch, prepared.blueprint.metadata, tokens)
    return {
        "model": prepared.source.name,
        "recipe": plan.recipe,
        "tuning": list(plan.tuning),
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "n_bytes": t.n_bytes} for t in plan.tensors
        ],
        "types": dict(Counter(t.type for t in plan.tensors)),
        "parameters": parameters,
        "file_bytes": plan.file_bytes,
        "bits_per_weight": 8 * sum(t.n_bytes for t in plan.tensors) / parameters,
        "disk_free": _disk_free(),
        "memory_bytes": bytes_to_write([plan], threads),
        "memory_free": machine.available_memory(),
        "seconds": round(seconds_to_write([plan], threads), 3),
        "kv_cache_context": tokens,
        "kv_cache_bytes": cache,
        "run_bytes": None if cache is None else plan.file_bytes + cache,
        "machine_bytes": machine.total_memory(),
        "dropped": _dropped(prepared, plan),
        "notes": list(plan.notes),
    }


def refuse_impossible(described: Sequence[dict[str, Any]]) -> None:
    """Refuse what could not be published: the files of *described*, made together.

    Raises:
        ResourceError: if the disk of the registry, or the memory, is too small.
    """
    for problem in problems(described):
        raise problem


def problems(described: Sequence[dict[str, Any]]) -> tuple[PipelineError, ...]:
    """Return what stands in the way of publishing the files of *described* together."""
    found: list[PipelineError] = []
    needed, free = sum(one["file_bytes"] for one in described), min(one["disk_free"] for one in described)
    if needed > free:
        found.append(
            ResourceError(
                "not enough disk space",
                where=local_store_root(),
                expected=f"{needed:,} bytes free",
                found=f"{free:,} bytes free",
                hint="free some space, publish fewer quantizations at once, or move the store (GGUF_PIPELINE_STORE)",
            )
        )
    memory, left = max(one["memory_bytes"] for one in described), min(one["memory_free"] for one in described)
    if memory > left + machine.resident_bytes():
        found.append(
            ResourceError(
                "not enough memory",
                expected=f"about {memory:,} bytes",
                found=f"{left:,} bytes free",
                hint="close other programs, or take fewer workers with --threads",
            )
        )
    return tuple(found)


def _dropped(prepared: Prepared, plan: Plan) -> dict[str, Any]:
    """Tell which tensors of the checkpoint go into no tensor of the file; notes say where that loses something."""
    used = {source.name for tensor in plan.tensors if tensor.view for source in tensor.view.sources}
    left = [tensor for name, tensor in prepared.tensors.items() if name not in used]
    return {
        "tensors": len(left),
        "bytes": sum(tensor.n_bytes for tensor in left),
        "names": [tensor.name for tensor in left[:_SHOWN]],
    }


def _trained_for(blueprint: Blueprint) -> int | None:
    wanted = f"{blueprint.model.arch}.context_length"
    return next((int(kv.value) for kv in blueprint.metadata if kv.key == wanted), None)


def _disk_free() -> int:
    root = local_store_root()
    return shutil.disk_usage(data.nearest_existing(root)).free
