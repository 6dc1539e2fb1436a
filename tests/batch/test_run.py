"""Jobs run side by side within the budget, and what happens to one happens to no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import Budget, Outcome, Task, run_jobs, summary
from pipeline.errors import InputError
from pipeline.job import Job


class _Watching(Executor):
    """Ends one call after the other, a little later than it is submitted, and counts what runs at once."""

    def __init__(self, answers: dict[str, Any], needs: dict[str, tuple[int, int]]) -> None:
        self.answers, self.needs = answers, needs
        self.now: list[str] = []
        self.most = {"jobs": 0, "memory": 0}
        self.lock, self.never = threading.Lock(), threading.Event()
        self.pool = ThreadPoolExecutor(1)

    def submit(self, _fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        model = args[0].model
        with self.lock:
            self.now.append(model)
            self.most["jobs"] = max(self.most["jobs"], len(self.now))
            self.most["memory"] = max(self.most["memory"], sum(self.needs[one][0] for one in self.now))
        return self.pool.submit(self._end, model)

    def _end(self, model: str) -> Any:
        self.never.wait(0.001)  # so that others are submitted meanwhile
        with self.lock:
            self.now.remove(model)
        answer = self.answers.get(model, {"state": "published"})
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _run(
    needs: dict[str, tuple[int, int]], budget: Budget, answers: dict[str, Any] | None = None, **options: Any
) -> tuple[dict[str, Outcome], _Watching]:
    executor = _Watching(answers or {}, needs)
    tasks = [
        Task(number, Job(model, ("Q4_0",)), (f"library/{model}:Q4_0",), disk=disk, memory=memory)
        for number, (model, (memory, disk)) in enumerate(needs.items(), 1)
    ]
    outcomes: list[Outcome] = []
    with executor.pool:
        run_jobs(tasks, executor, budget, outcomes.append, **options)
    assert len(outcomes) == len(tasks)
    return {one.model: one for one in outcomes}, executor


NEEDS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8)


@given(
    needs=NEEDS, workers=st.integers(1, 4), memory=st.none() | st.integers(1, 20), disk=st.none() | st.integers(1, 40)
)
def test_the_budget_holds(needs: list[tuple[int, int]], workers: int, memory: int | None, disk: int | None) -> None:
    """Never more jobs, memory or disk than allowed; every job that fits alone runs while disk is left."""
    named = {f"m{i}": need for i, need in enumerate(needs)}
    found, executor = _run(named, Budget(workers, memory, disk))
    assert executor.most["jobs"] <= workers
    assert memory is None or executor.most["memory"] <= memory
    done = [model for model, one in found.items() if one.state == "published"]
    taken = sum(named[model][1] for model in done)
    assert disk is None or taken <= disk
    for model, one in found.items():
        need_memory, need_disk = named[model]
        if one.state == "refused":
            assert one.exit_code == 5
            assert (memory is not None and need_memory > memory) or (disk is not None and need_disk > disk - taken)
        else:
            assert one.state == "published"


def test_a_job_that_fails_gives_its_disk_back() -> None:
    """What a failed job reserved is free for the next one."""
    found, _ = _run({"a": (0, 6), "b": (0, 6)}, Budget(2, disk=10), {"a": InputError("is bad")})
    assert {model: one.state for model, one in found.items()} == {"a": "failed", "b": "published"}
    assert (found["a"].error, found["a"].exit_code) == ("is bad", 1)


@pytest.mark.parametrize(("keep_going", "state"), [(True, "published"), (False, "stopped")])
def test_after_a_failure(keep_going: bool, state: str) -> None:
    """The others go on, or, if wanted, nothing new is started."""
    failed = {"a": {"state": "failed", "error": "no", "exit_code": 3}}
    found, _ = _run({"a": (0, 0), "b": (0, 0)}, Budget(1), failed, keep_going=keep_going)
    assert {model: one.state for model, one in found.items()} == {"a": "failed", "b": state}


def test_what_is_known_is_not_run() -> None:
    """A task with a report is unchanged, whatever the budget; one with an error has failed; neither is submitted."""
    executor = _Watching({}, {})
    outcomes: list[Outcome] = []
    tasks = [
        Task(1, Job("a", ()), report={"path": "/reports/a.json"}, memory=100),
        Task(2, Job("b", ()), error=InputError("is bad")),
    ]
    run_jobs(tasks, executor, Budget(1, memory=1), outcomes.append)
    assert [(one.model, one.state) for one in outcomes] == [("a", "unchanged"), ("b", "failed")]
    assert executor.most["jobs"] == 0
    made = summary(outcomes, 2.0)
    assert made["states"] == {"published": 0, "unchanged": 1, "failed": 1, "refused": 0, "stopped": 0}
    assert [row["report"] for row in made["jobs"]] == ["/reports/a.json", None]
