"""The command for many jobs: batch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._common import SizeType, duration, json_option, print_json, reporter, size

if TYPE_CHECKING:
    from pipeline.batch import Budget, Outcome, Task


@click.command()
@click.argument("jobs", metavar="JOBS.toml", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Jobs at once; default: one for two cores.")
@click.option("--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask scheduler (tcp://host:8786).")
@click.option("--memory", type=SizeType(), metavar="SIZE", help="Memory that all jobs at once may take (8G).")
@click.option("--disk", type=SizeType(), metavar="SIZE", help="Disk that all files together may take (50G).")
@click.option("--keep-going/--fail-fast", default=True, help="Whether other jobs start after a failure (they do).")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and write nothing.")
@click.option(
    "--summary", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary, as JSON, here too."
)
@json_option
def batch(
    jobs: Path, workers: int | None, scheduler: str | None, memory: int | None, disk: int | None, keep_going: bool,
    dry_run: bool, summary: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Publish many models: JOBS.toml names models, quantizations and targets (docs/batch.md).

    What is published already and would not change is skipped, so the same command goes on after a failure or a kill.
    """
    from pipeline import batch as batches
    from pipeline import machine
    from pipeline.errors import PipelineError

    log = reporter(quiet=as_json)
    started = time.monotonic()
    wanted = batches.read_jobs(jobs)
    workers = workers or (len(wanted) if scheduler else max(1, machine.usable_cores() // 2))
    threads = 0 if scheduler else max(1, machine.usable_cores() // min(workers, len(wanted)))
    tasks = batches.plan_tasks(wanted, log, threads=threads, is_remote=scheduler is not None)
    budget = batches.Budget(workers, memory, disk)
    if dry_run:
        _preview(tasks, budget, as_json)
        return
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        log.stage(f"[{len(outcomes)}/{len(tasks)}] {_line(outcome)}")

    try:
        with _executor(scheduler) as executor:
            batches.run_jobs(
                tasks, executor, budget, done, lambda task: log.stage(f"{_who(task)} ..."), keep_going=keep_going
            )
    finally:  # ctrl-C included: what was done is told
        made = batches.summary(outcomes, time.monotonic() - started)
        _tell(made, summary, as_json)
    if bad := [one for one in outcomes if not one.is_good]:
        codes = {one.exit_code for one in bad}
        error = PipelineError(
            f"{len(bad)} of {len(outcomes)} jobs are not done", hint="mend it, and run the same command again"
        )
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        raise error


@contextlib.contextmanager
def _executor(scheduler: str | None) -> Iterator[Executor]:
    from pipeline.batch import ProcessPerJob, cluster

    with cluster(scheduler) if scheduler else contextlib.nullcontext(ProcessPerJob()) as executor:
        yield executor


def _preview(tasks: tuple[Task, ...], budget: Budget, as_json: bool) -> None:
    from pipeline.publish import redacted

    rows: list[dict[str, Any]] = []
    for task in tasks:
        refusal = task.error or (None if task.report else budget.refusal(task))
        state = "unchanged" if task.report else "would be published" if refusal is None else "refused"
        rows.append(
            {
                "number": task.number,
                "model": task.job.model,
                "names": task.names,
                "targets": tuple(map(redacted, task.job.targets)),
                "state": state,
                "disk": task.disk,
                "memory": task.memory,
                "error": str(refusal) if refusal else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        needs = f"disk {size(row['disk'])}, memory {size(row['memory'])}"
        click.echo(f"{_names(row)} -> {', '.join(row['targets'])}: {row['state']}, {needs}")
        if row["error"]:
            click.echo("  " + row["error"].replace("\n", "\n  "))


def _tell(made: dict[str, Any], path: Path | None, as_json: bool) -> None:
    import json

    from pipeline import whole

    if path is not None:
        whole.write_text(path, json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print_json(made)
        return
    for row in made["jobs"]:
        click.echo(f"{row['state']:<10} {duration(row['seconds']):>7}  {_names(row)} -> {', '.join(row['targets'])}")
        if row["error"]:
            click.echo("  " + row["error"].replace("\n", "\n  "))
    counts = ", ".join(f"{n} {state}" for state, n in made["states"].items() if n)
    click.echo(
        f"{counts or 'nothing done'}; {size(made['disk'])} in {duration(made['seconds'])}, {made['overlap']} at once"
    )


def _names(row: dict[str, Any]) -> str:
    return " ".join(row["names"]) or str(row["model"])


def _who(task: Task) -> str:
    return " ".join(task.names)


def _line(outcome: Outcome) -> str:
    return f"{' '.join(outcome.names)}: {outcome.state} in {duration(outcome.seconds)}"
