"""A plan as plain values, for `plan` and `--dry-run`: types, sizes, disk, memory, time; nothing is read but headers."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import data, decide, flow, machine, publish, quant
from pipeline import delivery as deliveries
from pipeline import release as releases
from pipeline.errors import PipelineError, ResourceError
from pipeline.estimate import bytes_to_write, seconds_to_write
from pipeline.job import Job, Prepared
from pipeline.kv_cache import kv_cache_bytes
from pipeline.plan import make_plan
from pipeline.store import local_store_root
from pipeline.tuning import Tuning
from pipeline.types import Blob, Log, Plan

_CONTEXT = 4096  # tokens
_SHOWN = 20  # names of dropped tensors


def describe_plans(
    prepared: Prepared,
    recipes: Sequence[str],
    context: int,
    threads: int = 0,
    engine: str = quant.AUTO,
    tuning: Tuning | None = None,
) -> list[dict[str, Any]]:
    """Describe the files that *recipes* would give: sizes in bytes, shapes row-major, times in seconds.

    *tuning* changes the recipes.  *context*, in tokens, is what the KV cache is estimated for; it never exceeds what
    the model was trained for.
    Memory and time are estimates for this machine with *threads* workers of *engine*: of one file, and under "together"
    of all that are written in one run.  "kv_cache_bytes" is None where the header does not tell.
    """
    plans = [make_plan(prepared.blueprint, recipe, tuning) for recipe in recipes]
    # Before times: measuring them takes memory, which is no longer told from what was there before.
    memory = [bytes_to_write(each, threads, engine) for each in (plans, *([plan] for plan in plans))]
    together = {
        "file_bytes": sum(plan.file_bytes for plan in plans),
        "memory_bytes": memory[0],
        "seconds": round(seconds_to_write(plans, threads, engine), 3),
    }
    return [
        _describe(prepared, plan, context)
        | {"memory_bytes": n_bytes, "seconds": round(seconds_to_write([plan], threads, engine), 3)}
        | {"together": together}
        for plan, n_bytes in zip(plans, memory[1:], strict=True)
    ]


def _describe(prepared: Prepared, plan: Plan, context: int) -> dict[str, Any]:
    parameters = prepared.blueprint.n_parameters
    tokens = min(context, prepared.blueprint.context_length or context)
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
        "disk": str(local_store_root()),
        "disk_free": _disk_free(local_store_root()),
        "memory_free": machine.available_memory(),
        "kv_cache_context": tokens,
        "kv_cache_bytes": cache,
        "run_bytes": None if cache is None else plan.file_bytes + cache,
        "machine_bytes": machine.total_memory(),
        "dropped": _dropped(prepared, plan),
        "notes": list(plan.notes),
    }


def describe_publication(job: Job, log: Log) -> list[dict[str, Any]]:
    """Describe what `flow.package` would publish of *job*, file by file, and what its target has of it already.

    Raises:
        PipelineError: where `flow.package` would stop before the work.
    """
    flow.check_job(job)
    with (
        deliveries.opened(job.targets) as targets,
        flow.prepare(job.model, log, requantize=job.requantize, adapter=job.adapter) as prepared,
    ):
        job = replace(job, quants=flow.choose_quants(job.quants, prepared))
        plans = [make_plan(prepared.blueprint, recipe, job.tuning) for recipe in job.quants]
        blobs = [Blob("sha256:" + 64 * "0", plan.file_bytes) for plan in plans]  # unknown until it is written
        modelfile = decide.modelfile_of(prepared, job, log)
        release = releases.make_release(job, prepared, plans, modelfile, [Path()] * len(plans), blobs)
        for target in targets.values():
            target.check(release.namespace, release.model, job.tags_of_all())
        staging = next(iter(targets.values())).staging_folder
        there = {text: publish.already_there(target, release) for text, target in targets.items()}
        described = describe_plans(prepared, job.quants, _CONTEXT, job.threads, job.engine, job.tuning)
        return [
            one
            | {"disk": str(staging), "disk_free": _disk_free(staging)}
            | {"name": f"{release.namespace}/{release.model}:{recipe}", "tags": job.tags_of(number)}
            | {"targets": [_at_target(text, found[number]) for text, found in there.items()]}
            for number, (one, recipe) in enumerate(zip(described, job.quants, strict=True))
        ]


def _at_target(text: str, there: publish.Already) -> dict[str, Any]:
    return {
        "target": publish.redacted(text),
        "blobs": [asdict(blob) for blob in there.blobs],
        "replaces": list(there.replaces),
        "blobs_there": there.n_there,
        "bytes_to_send": there.bytes_to_send,
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
                where=described[0]["disk"],
                expected=f"{needed:,} bytes free",
                found=f"{free:,} bytes free",
                hint="free some space, publish fewer quantizations at once, or move the folder: GGUF_PIPELINE_STORE is "
                "that of the target local, XDG_CACHE_HOME that of registries",
            )
        )
    memory, left = (
        max(one["together"]["memory_bytes"] for one in described),
        min(one["memory_free"] for one in described),
    )
    if memory > left + machine.resident_bytes():
        found.append(
            ResourceError(
                "not enough memory",
                expected=f"about {memory:,} bytes",
                found=f"{left:,} bytes free",
                hint="close other programs, or take fewer workers with --threads, or make fewer quantizations at once",
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


def _disk_free(folder: Path) -> int:
    return shutil.disk_usage(data.nearest_existing(folder)).free
