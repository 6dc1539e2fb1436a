"""Before anything is written: what each job will give, what it needs, and whether it is done already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import delivery, flow, machine, publish, record
from pipeline import plan as plans
from pipeline.encode import memory_bytes
from pipeline.errors import PipelineError, UsageError
from pipeline.job import Job
from pipeline.report import Report
from pipeline.types import Log

_ON_THIS_MACHINE = ("local", "ollama")


@dataclass(frozen=True)
class Task:
    """A job that is planned.

    *names* are "namespace/model:tag", one for each quantization.  *disk* is what it will take at all targets together,
    and *memory* the most that it takes while it works; both in bytes, estimated.  *report* is that of an earlier
    publication that is just this one; *error* is why the job cannot be done.
    """

    number: int
    job: Job
    names: tuple[str, ...] = ()
    disk: int = 0
    memory: int = 0
    report: dict[str, Any] | None = None
    error: PipelineError | None = None


def plan_tasks(
    jobs: Sequence[Job], log: Log, *, threads: int, is_remote: bool = False, planned: Callable[[Task], object] = id
) -> tuple[Task, ...]:
    """Plan each of *jobs* from its headers; one that cannot be planned keeps its error, and harms no other.

    Args:
        jobs: what to do.
        log: told what is read.
        threads: for each job that says none.
        is_remote: the work is done elsewhere, so that the stores of this machine tell nothing of it.
        planned: called with each task.

    Raises:
        UsageError: if two jobs would publish under one name.
    """
    tasks = []
    owners: dict[tuple[str, str], int] = {}
    for number, job in enumerate(jobs, 1):
        task = _plan(number, replace(job, threads=job.threads or threads), log, is_remote)
        for key in ((target, name) for target in job.targets for name in _all_names(task)):
            if owners.setdefault(key, number) != number:
                raise UsageError(
                    "two jobs would publish under one name",
                    where=f"{key[1]} at {publish.redacted(key[0])}",
                    found=f"{jobs[owners[key] - 1].model} (job {owners[key]}) and {job.model} (job {number})",
                    hint="give one of them another name, other tags, or latest = false",
                )
        planned(task)
        tasks.append(task)
    return tuple(tasks)


def _plan(number: int, job: Job, log: Log, is_remote: bool) -> Task:
    try:
        flow.check_job(job)
        if not (job.again or (is_remote and set(job.targets) & set(_ON_THIS_MACHINE))) and (report := _known(job)):
            shown, quants = report.visible, tuple(file.recipe for file in report.files)
            names = tuple(f"{shown.namespace}/{shown.model}:{quant}" for quant in quants)
            return Task(number, replace(job, quants=quants), names, report=report.as_dict())
        with flow.prepare(job.model, log, requantize=job.requantize, adapter=job.adapter) as prepared:
            job = replace(job, quants=flow.choose_quants(job.quants, prepared))
            made = [plans.make_plan(prepared.blueprint, name, job.tuning) for name in job.quants]
            name = "/".join(flow.model_name(job, prepared))
            held = machine.resident_bytes()
        sizes = [plan.file_bytes for plan in made]
        memory = held + memory_bytes(made, job.threads or machine.usable_cores())
        # The proof loads each file; the runtime maps it.
        memory = max(memory, 0 if job.proof == "none" else held + max(sizes))
        return Task(
            number, job, tuple(f"{name}:{quant}" for quant in job.quants), sum(sizes) * len(job.targets), memory
        )
    except PipelineError as error:
        return Task(number, job, error=error)


def _known(job: Job) -> Report | None:
    with delivery.opened(job.targets) as targets:
        return record.at_a_glance(job, targets, record.look_of(job))


def _all_names(task: Task) -> tuple[str, ...]:
    if not task.names:
        return ()
    model = task.names[0].rpartition(":")[0]
    return tuple(f"{model}:{tag}" for tag in task.job.tags_of_all())
