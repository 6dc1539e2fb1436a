"""A batch from the command line: run, run again, failed, killed, interrupted, refused, and on a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.batch import Budget, Outcome, cluster, plan_tasks, read_jobs, run_jobs
from pipeline.cli import main
from pipeline.errors import AccessError
from pipeline.report import reports_folder
from pipeline.store import Store

THREE = """
[defaults]
quants = "Q4_0"
proof = "none"
errors = "none"
[[job]]
model = "demo"
name = "test/a"
[[job]]
model = "demo"
name = "test/b"
modelfile.parameters.num_ctx = 256
[[job]]
model = "demo"
name = "test/c"
modelfile.system = "Be brief."
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the target `local`, in the test's own folder."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    return Store(tmp_path / "registry")


def _batch(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["batch", *map(str, arguments)])


def _write(folder: Path, text: str) -> Path:
    path = folder / "jobs.toml"
    path.write_text(text)
    return path


def _models(store: Store) -> set[str]:
    return {entry.name.repository for entry in store.list()}


def _states(text: str) -> list[str]:
    return [row["state"] for row in json.loads(text)["jobs"]]


def _is_clean(store: Store) -> bool:
    return all(found.ok for entry in store.list() for found in store.verify(entry.name)) and not [
        path for path in store.blobs_dir.iterdir() if "pkg" in path.name
    ]


def test_the_example_runs_and_then_has_nothing_to_do(store: Store, repository: Path, tmp_path: Path) -> None:
    """examples/jobs.toml publishes what it says; a second run does nothing at all; the summary is written too."""
    example = repository / "examples" / "jobs.toml"
    before = json.loads(_batch(example, "--dry-run", "--json").stdout)
    assert [row["state"] for row in before] == ["would be published"] * 2
    assert not store.root.exists()
    first = _batch(example, "--workers", "2", "--json", "--summary", tmp_path / "summary.json")
    assert first.exit_code == 0, first.output
    made = json.loads((tmp_path / "summary.json").read_text())
    assert made == json.loads(first.stdout)
    assert _states(first.stdout) == ["published", "published"]
    assert len(made["workers"]) == 2
    assert made["disk"] == sum(row["disk"] for row in before)
    names = {f"{entry.name.repository}:{entry.name.tag}" for entry in store.list()}
    quants = {"Q4_K_M", "Q8_0", "latest"}
    assert names == {f"{model}:{tag}" for model in ("library/demo", "examples/brief") for tag in quants} | {
        f"library/demo:{tag}" for tag in ("v1", "Q4_K_M-v1", "Q8_0-v1")
    }
    assert _is_clean(store)
    second = _batch(example, "--json")
    assert (second.exit_code, _states(second.stdout)) == (0, ["unchanged", "unchanged"])
    assert json.loads(second.stdout)["workers"] == []


def test_one_that_fails_harms_no_other(store: Store, tmp_path: Path) -> None:
    """A model that is not there is told before the work, and the batch ends with its exit code."""
    jobs = _write(tmp_path, THREE + '[[job]]\nmodel = "./none"\n')
    done = _batch(jobs, "--json")
    assert done.exit_code == 3
    assert _states(done.stdout) == ["published", "published", "published", "failed"]
    assert "is not there" in json.loads(done.stdout)["jobs"][3]["error"]
    assert "1 of 4 jobs are not done" in done.stderr
    assert _models(store) == {"test/a", "test/b", "test/c"}


def test_what_does_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    """A job over the budget is not begun: exit code 5; what fits is done."""
    jobs = _write(tmp_path, THREE)
    done = _batch(jobs, "--memory", "1M", "--json")
    assert (done.exit_code, _states(done.stdout)) == (5, ["refused"] * 3)
    assert not store.root.exists()
    size = json.loads(_batch(jobs, "--dry-run", "--json").stdout)[0]["disk"]
    done = _batch(jobs, "--disk", f"{2 * size // 10**6 + 1}M", "--json")
    assert (done.exit_code, _states(done.stdout)) == (5, ["published", "published", "refused"])


def test_two_jobs_with_one_name_are_refused(store: Store, tmp_path: Path) -> None:
    """Whose model it would be is not left to chance; nothing is begun."""
    done = _batch(_write(tmp_path, THREE.replace("test/b", "test/a")))
    assert done.exit_code == 2
    assert "two jobs would publish under one name" in done.output
    assert not store.root.exists()


@contextmanager
def _started(jobs: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pipeline.cli", "batch", str(jobs), "--workers", "1", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_after_a_kill_it_goes_on(store: Store, tmp_path: Path) -> None:
    """Killed without a word after the first job, the same command does the others, and does the first no more."""
    jobs = _write(tmp_path, THREE)
    with _started(jobs) as child:
        _wait_for((reports_folder() / "localhost_11500_test_a_Q4_0.json").exists)
        os.kill(child.pid, signal.SIGKILL)
    done = _batch(jobs, "--json")
    assert done.exit_code == 0, done.output
    assert _states(done.stdout)[0] == "unchanged"
    assert _states(done.stdout)[2] == "published"
    assert _models(store) == {"test/a", "test/b", "test/c"}
    assert _is_clean(store)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_in_order(number: signal.Signals, store: Store, tmp_path: Path) -> None:
    """Everything stops, nothing half done stays, and the summary says what became of each job."""
    jobs = _write(tmp_path, THREE)
    with _started(jobs) as child:
        _wait_for(lambda: "test/a" in _models(store))
        os.kill(child.pid, number)
        text, _ = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    states = _states(text)
    assert states[0] in {"published", "stopped"}
    assert states[2] == "stopped"
    assert _is_clean(store)
    assert _batch(jobs).exit_code == 0
    assert _models(store) == {"test/a", "test/b", "test/c"}


@pytest.fixture
def dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Dask scheduler and two workers, all processes of their own; each worker has its own folders."""
    file = tmp_path / "scheduler.json"
    with _running("scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard", "--host", "127.0.0.1"):
        _wait_for(lambda: file.exists() and file.read_text().endswith("}"))
        address: str = json.loads(file.read_text())["address"]
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        homes = [tmp_path / name for name in ("one", "two")]
        settings = [{"XDG_DATA_HOME": str(home), "GGUF_PIPELINE_STORE": str(home / "registry")} for home in homes]
        local = [(*worker, "--local-directory", str(home / "scratch")) for home in homes]
        with _running(*local[0], **settings[0]), _running(*local[1], **settings[1]):
            code = "import sys; from distributed import Client; Client(sys.argv[1]).wait_for_workers(2, timeout=60)"
            subprocess.run([sys.executable, "-c", code, address], check=True, capture_output=True, timeout=120)
            yield address


@contextmanager
def _running(*arguments: str | Path, **environment: str) -> Iterator[None]:
    command = [sys.executable, "-m", "dask", *map(str, arguments)]
    child = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        child.terminate()
        child.wait(60)


def test_on_a_cluster(dask: str, tmp_path: Path) -> None:
    """Two workers with folders of their own share the jobs; each has published what it was given, and only that."""
    jobs = _write(tmp_path, THREE + '[[job]]\nmodel = "demo"\nname = "test/d"\nlatest = false\n')
    command = [sys.executable, "-m", "pipeline.cli", "batch", str(jobs), "--scheduler", dask, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert _states(done.stdout) == ["published"] * 4
    assert len(made["workers"]) == 2
    stores = [Store(tmp_path / name / "registry") for name in ("one", "two")]
    assert all(_models(store) for store in stores)
    assert sorted(name for store in stores for name in _models(store)) == ["test/a", "test/b", "test/c", "test/d"]
    assert all(_is_clean(store) for store in stores)


@pytest.mark.filterwarnings("default")  # of Dask's own
def test_on_a_local_cluster(store: Store, tmp_path: Path, silent_log: Any) -> None:
    """The same function runs on a LocalCluster of threads in this process, given as an executor."""
    from distributed import LocalCluster

    tasks = plan_tasks(read_jobs(_write(tmp_path, THREE)), silent_log, threads=1, is_remote=True)
    outcomes: list[Outcome] = []
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as local,
        cluster(local.scheduler_address) as executor,
    ):
        run_jobs(tasks, executor, Budget(2), outcomes.append)
    assert [one.state for one in outcomes] == ["published"] * 3
    assert _models(store) == {"test/a", "test/b", "test/c"}


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "tls://[::1]:1", "tcp://no.such.host.invalid:1"]
)
def test_a_scheduler_that_is_not_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nobody listens is told with the next step, before Dask's client tries it for ten seconds."""
    monkeypatch.setattr("distributed.Client", None)
    with pytest.raises(AccessError, match="dask scheduler") as raised, cluster(address):
        pass
    assert raised.value.where == address


@pytest.mark.filterwarnings("default")
def test_an_address_that_is_none() -> None:
    """It is told likewise."""
    with pytest.raises(AccessError, match="dask scheduler"), cluster("tcp://127.0.0.1:no"):
        pass
