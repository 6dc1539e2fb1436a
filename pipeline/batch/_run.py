"""Run planned jobs on an executor, as many at once as fit the budget, and say what became of each."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import publish, pull_back
from pipeline.batch._tasks import Task
from pipeline.errors import PipelineError, ResourceError
from pipeline.job import Job
from pipeline.progress import Silent

STATES = ("published", "unchanged", "failed", "refused", "stopped")
GOOD = ("published", "unchanged")


@dataclass(frozen=True)
class Budget:
    """How much may be used at once: jobs, bytes of memory; and bytes of disk that all jobs together may add."""

    workers: int
    memory: int | None = None
    disk: int | None = None

    def refusal(self, task: Task) -> ResourceError | None:
        """Say why *task* cannot be done even alone."""
        for what, need, have in (("memory", task.memory, self.memory), ("disk", task.disk, self.disk)):
            if have is not None and need > have:
                return _too_much(task, what, need, have)
        return None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: *state* is one of STATES; *worker* is "host:process", *report* the report's values."""

    number: int
    model: str
    names: tuple[str, ...]
    targets: tuple[str, ...]
    state: str
    seconds: float = 0.0
    disk: int = 0
    memory: int = 0
    worker: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0
    report: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def is_good(self) -> bool:
        """Whether the model is there."""
        return self.state in GOOD


def run_jobs(
    tasks: Sequence[Task],
    executor: Executor,
    budget: Budget,
    done: Callable[[Outcome], object],
    started: Callable[[Task], object] = id,
    *,
    keep_going: bool = True,
) -> None:
    """Run *tasks*; *done* gets the outcome of each, in the order in which they end.

    A task waits while it does not fit beside those that run.  One that can never fit is refused, and the work goes on.
    Without *keep_going*, nothing is started after the first failure; what runs ends.

    Raises:
        BaseException: what interrupts the waiting (Ctrl-C) stops all jobs, and *done* is told so.
    """
    _Run(list(tasks), executor, budget, done, started, keep_going).run()


class _Run:
    def __init__(
        self,
        tasks: list[Task],
        executor: Executor,
        budget: Budget,
        done: Callable[[Outcome], object],
        started: Callable[[Task], object],
        keep_going: bool,
    ) -> None:
        self.waiting = tasks
        self.running: dict[Future[Any], tuple[Task, float]] = {}
        self.executor, self.budget, self.done, self.started = executor, budget, done, started
        self.keep_going = keep_going
        self.is_stopping = False
        self.disk = 0  # taken by jobs that are done

    def run(self) -> None:
        """Run everything."""
        try:
            self._settle_known()
            while self.waiting or self.running:
                self._start_what_fits()
                if self.running:
                    self._collect()
        except BaseException:
            self._stop()
            raise

    def _settle_known(self) -> None:
        """Tell of what needs no work: unchanged, impossible, too large."""
        for task in list(self.waiting):
            refusal = task.error or (None if task.report else self.budget.refusal(task))
            if refusal is None and task.report is None:
                continue
            self.waiting.remove(task)
            if refusal is None:
                self._tell(_outcome(task, "unchanged", report=task.report))
            else:
                state = "failed" if refusal is task.error else "refused"
                self._tell(_outcome(task, state, error=str(refusal), exit_code=refusal.exit_code))

    def _start_what_fits(self) -> None:
        for task in list(self.waiting):
            if self.is_stopping:
                self.waiting.remove(task)
                self._tell(_outcome(task, "stopped", error="an earlier job failed", exit_code=1))
            elif self._fits(task):
                self.waiting.remove(task)
                self.started(task)
                self.running[self.executor.submit(work, task.job)] = (task, time.monotonic())
            elif not self.running:  # so it is the disk, which nobody will give back
                self.waiting.remove(task)
                left = (self.budget.disk or 0) - self.disk
                refusal = _too_much(task, "disk", task.disk, left)
                self._tell(_outcome(task, "refused", error=str(refusal), exit_code=refusal.exit_code))

    def _fits(self, task: Task) -> bool:
        beside = [one for one, _ in self.running.values()]
        memory = sum(one.memory for one in beside) + task.memory
        disk = self.disk + sum(one.disk for one in beside) + task.disk
        return (
            len(beside) < self.budget.workers
            and (self.budget.memory is None or memory <= self.budget.memory)
            and (self.budget.disk is None or disk <= self.budget.disk)
        )

    def _collect(self) -> None:
        ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
        for future in ended:
            task, started = self.running.pop(future)
            seconds = time.monotonic() - started
            try:
                outcome = _outcome(task, seconds=seconds, **future.result())
            except Exception as error:  # a crash, or a bug: that of one job
                outcome = _outcome(task, "failed", seconds=seconds, error=_text(error), exit_code=1)
            if outcome.state == "published":
                self.disk += task.disk
            self._tell(outcome)

    def _stop(self) -> None:
        for future in self.running:
            future.cancel()
        self.executor.shutdown(wait=True, cancel_futures=True)
        for task in (*(task for task, _ in self.running.values()), *self.waiting):
            self.done(_outcome(task, "stopped", error="interrupted", exit_code=1))

    def _tell(self, outcome: Outcome) -> None:
        if not outcome.is_good and not self.keep_going:
            self.is_stopping = True
        self.done(outcome)


def work(job: Job) -> dict[str, Any]:
    """Do one job, wherever this runs; return plain values."""
    log = Silent()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    try:
        report = pull_back.package(job, log).as_dict()
    except PipelineError as error:
        said = {"state": "failed", "error": str(error), "exit_code": error.exit_code}
    else:
        said = {"state": report["state"], "report": report}
    return said | {"worker": worker, "notes": tuple(log.notes)}


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Put all outcomes, in the order of the jobs, and their totals into plain values; *seconds* is wall time.

    "overlap" is how many jobs ran at once on average.
    """
    rows = [asdict(one) | {"report": _report_path(one)} for one in sorted(outcomes, key=lambda one: one.number)]
    busy = sum(one.seconds for one in outcomes)
    return {
        "jobs": rows,
        "states": {state: sum(one.state == state for one in outcomes) for state in STATES},
        "workers": sorted({one.worker for one in outcomes if one.worker}),
        "disk": sum(one.disk for one in outcomes if one.state == "published"),
        "seconds": round(seconds, 3),
        "overlap": round(busy / seconds, 2) if seconds else 0.0,
    }


def _report_path(outcome: Outcome) -> str | None:
    return str(Path(outcome.report["path"])) if outcome.report else None


def _outcome(task: Task, state: str, seconds: float = 0.0, **what: Any) -> Outcome:
    job, names = task.job, task.names or (task.job.model,)
    targets = tuple(map(publish.redacted, job.targets))
    return Outcome(task.number, job.model, names, targets, state, round(seconds, 3), task.disk, task.memory, **what)


def _too_much(task: Task, what: str, need: int, have: int) -> ResourceError:
    return ResourceError(
        f"the job needs more {what} than there may be used",
        where=task.job.model,
        expected=f"at most {have:,} bytes (--{what})",
        found=f"about {need:,} bytes",
        hint="take fewer threads, or raise the budget" if what == "memory" else "raise the budget, or free some space",
    )


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, PipelineError) else repr(error)
