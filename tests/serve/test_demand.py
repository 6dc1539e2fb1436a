"""Making models at the first pull, with a real Hub client, a process for each job, and real HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.serve import BackgroundServer, Demand, Limits, Offers, Settings
from pipeline.serve._demand import REMEMBERED_S
from pipeline.serve._make import LineLog
from pipeline.store import Store

WEIGHTS = "model.safetensors"
PATH = "/v2/hf/me-demo-model/manifests/"


class Clock:
    """Seconds that only a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the demand."""
    return Clock()


@pytest.fixture
def files(hub: Any, demo: Path) -> dict[str, bytes]:
    """The demo as the repository Me/Demo-Model on the Hub; its weights are in LFS."""
    found = {p.name: p.read_bytes() for p in demo.iterdir() if p.suffix in {".json", ".safetensors", ".jinja"}}
    hub.repo("Me/Demo-Model", found, lfs=(".safetensors",))
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The registry's store, empty."""
    return Store(tmp_path / "registry")


@pytest.fixture
def serving(files: dict[str, bytes], store: Store, clock: Clock) -> Iterator[Callable[..., str]]:
    """Start a registry that makes Me/Demo-Model and the alias demo within the given limits; returns its address."""
    servers: list[BackgroundServer] = []

    def start(**limits: Any) -> str:
        demand = Demand(Offers(["Me/Demo-Model", "demo"]), store.root, Limits(**limits), clock)
        servers.append(BackgroundServer(store, settings=Settings(on_demand=demand)))
        return f"http://{servers[-1].__enter__().address}"

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def error(answer: requests.Response) -> tuple[int, str, str]:
    """Return status, code and message of an error."""
    (found,) = answer.json()["errors"]
    return answer.status_code, found["code"], found["message"]


def test_all_who_wait_get_the_model(serving: Callable[..., str], hub: Any, store: Store) -> None:
    """Three pulls of one model are one job; the lists show it only when it is made; later pulls find it."""
    url = serving()
    assert requests.get(f"{url}/v2/_catalog", timeout=10).json() == {"repositories": []}
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: requests.get(f"{url}{PATH}Q8_0", timeout=120), range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 1
    sent = hub.sent[WEIGHTS]
    assert requests.get(f"{url}/v2/_catalog", timeout=10).json() == {"repositories": ["hf/me-demo-model"]}
    assert requests.get(f"{url}{PATH}Q8_0", timeout=10).content == answers[0].content
    assert hub.sent[WEIGHTS] == sent
    assert [str(entry.name) for entry in store.list()] == ["localhost:11500/hf/me-demo-model:Q8_0"]


def test_a_client_that_gives_up_and_one_that_wants_another(serving: Callable[..., str], hub: Any, store: Store) -> None:
    """The job goes on without its client; meanwhile another model is refused with 503, and looking starts nothing."""
    url, fault = serving(), hub.hold(WEIGHTS, 1_000_000)
    with pytest.raises(requests.Timeout):
        requests.get(f"{url}{PATH}Q4_K_M", timeout=2)
    assert fault.reached.wait(60)
    busy = requests.get(f"{url}/v2/library/demo/manifests/Q4_K_M", timeout=10)
    assert error(busy)[:2] == (503, "TOOMANYREQUESTS")
    assert "hf/me-demo-model:Q4_K_M is being made" in error(busy)[2]
    assert int(busy.headers["Retry-After"]) > 0
    assert requests.head(f"{url}{PATH}Q8_0", timeout=10).status_code == 404
    waiting = threading.Thread(target=requests.get, args=(f"{url}{PATH}Q4_K_M",), kwargs={"timeout": 120})
    waiting.start()
    fault.released.set()
    waiting.join()
    assert [str(entry.name) for entry in store.list()] == ["localhost:11500/hf/me-demo-model:Q4_K_M"]
    assert requests.get(f"{url}/v2/library/demo/manifests/Q4_K_M", timeout=120).status_code == 200


def test_latest_is_the_default(serving: Callable[..., str], store: Store) -> None:
    """A pull without a tag makes what the alias says, and tags it as `publish` would."""
    assert requests.get(f"{serving()}/v2/library/demo/manifests/latest", timeout=120).status_code == 200
    assert sorted(entry.name.tag for entry in store.list()) == ["Q4_K_M", "latest"]


def test_a_failure_is_told_and_remembered(serving: Callable[..., str], hub: Any, clock: Clock, store: Store) -> None:
    """The reason comes with the answer, again at once for a while; then the work is tried again."""
    url, repo = serving(), hub.repos["Me/Demo-Model"]
    repo.disabled = True
    first = requests.get(f"{url}{PATH}Q4_K_M", timeout=120)
    assert error(first)[:2] == (502, "UNKNOWN")
    assert "hf/me-demo-model:Q4_K_M could not be made" in error(first)[2]
    assert "the repository was disabled by the Hub" in error(first)[2]
    asked, repo.disabled = len(hub.asked), False
    assert requests.get(f"{url}{PATH}Q4_K_M", timeout=10).content == first.content
    assert len(hub.asked) == asked
    assert store.list() == ()
    clock.now = REMEMBERED_S + 1
    assert requests.get(f"{url}{PATH}Q4_K_M", timeout=120).status_code == 200


def test_limits(serving: Callable[..., str], store: Store) -> None:
    """A file that would be too large is refused before it is written, a job that takes too long is stopped."""
    answer = requests.get(f"{serving(file_bytes=1_000_000)}{PATH}Q4_K_M", timeout=120)
    assert error(answer)[0] == 507
    assert "larger than this registry makes" in error(answer)[2]
    answer = requests.get(f"{serving(seconds=0.5)}{PATH}Q4_K_M", timeout=120)
    assert error(answer)[0] == 500
    assert "took longer" in error(answer)[2]
    assert store.list() == ()


def test_the_end_of_the_server_ends_the_job(files: dict[str, bytes], hub: Any, store: Store) -> None:
    """A job under way is stopped with the server, and leaves nothing in the store."""
    fault = hub.hold(WEIGHTS, 1_000_000)
    demand = Demand(Offers(["Me/Demo-Model"]), store.root)
    with BackgroundServer(store, settings=Settings(on_demand=demand)) as server:
        with pytest.raises(requests.Timeout):
            requests.get(f"http://{server.address}{PATH}Q4_K_M", timeout=2)
        assert fault.reached.wait(60)
    fault.released.set()
    assert files
    assert store.list() == ()
    assert not store.blobs_dir.exists() or list(store.blobs_dir.iterdir()) == []


def test_what_is_not_offered(serving: Callable[..., str]) -> None:
    """Other names of the Hub's namespace are refused with the way out; other models are simply not there."""
    url = serving()
    other = requests.get(f"{url}/v2/hf/me-other/manifests/Q4_K_M", timeout=10)
    assert error(other)[:2] == (403, "DENIED")
    assert "--allow org/name" in error(other)[2]
    assert error(requests.get(f"{url}/v2/library/qwen/manifests/Q8_0", timeout=10))[:2] == (404, "MANIFEST_UNKNOWN")
    assert error(requests.get(f"{url}{PATH}q4_k_m", timeout=10))[:2] == (400, "TAG_INVALID")
    by_digest = requests.get(f"{url}{PATH}sha256:{'0' * 64}", timeout=10)
    assert error(by_digest)[:2] == (404, "MANIFEST_UNKNOWN")


def test_a_hub_that_does_not_answer(store: Store) -> None:
    """However many ask for what only the Hub can tell, the others are served, and so is what is named itself."""
    asked, answer = threading.Event(), threading.Event()

    def listing(_: str) -> tuple[str, ...]:
        asked.set()
        answer.wait(60)
        return ()

    digest = store.add_bytes(b"GGUF").digest
    demand = Demand(Offers(["me/*", "demo"], listing), store.root)
    with BackgroundServer(store, settings=Settings(on_demand=demand)) as server, ThreadPoolExecutor(40) as pool:
        url = f"http://{server.address}/v2"
        waiting = [pool.submit(requests.get, f"{url}/hf/me-x/manifests/Q8_0", timeout=60) for _ in range(40)]
        try:
            assert asked.wait(60)
            assert requests.get(f"{url}/library/demo/blobs/{digest}", timeout=20).content == b"GGUF"
            named = requests.get(f"{url}/library/demo/manifests/none", timeout=20)
            assert error(named)[1] == "TAG_INVALID"
        finally:
            answer.set()
        assert {one.result().status_code for one in waiting} == {403}


def test_the_log_has_lines() -> None:
    """Progress is one line a step, with the model's name before it."""
    lines: list[str] = []
    log = LineLog("hf/x:Q8_0", lines.append)
    log.stage("proving")
    log.note("said")
    with log.bar("writing") as progress:
        progress(1, 2)
    assert lines == ["hf/x:Q8_0: proving\n", "hf/x:Q8_0: note: said\n", "hf/x:Q8_0: writing ...\n"]


def _below(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.mark.native
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("depth", [1, 2], ids=["the job", "what the job started"])
def test_a_killed_server_leaves_no_process(
    depth: int, files: dict[str, bytes], hub: Any, llama: Any, tmp_path: Path
) -> None:
    """SIGKILL to the server, while it makes a model, ends the job, and the programs that it runs, too."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--on-demand", "--allow", "Me/Demo-Model", "--port", "0"]
    own = {"GGUF_PIPELINE_STORE": str(tmp_path / "registry"), "GGUF_PIPELINE_LLAMA": str(llama.bin_dir)}
    held = hub.hold(WEIGHTS, 1000) if depth == 1 else None
    with subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = re.search(r"127\.0\.0\.1:\d+|localhost:\d+", server.stderr.readline())
        assert address
        with ThreadPoolExecutor(2) as pool:
            log = pool.submit(server.stderr.read)
            pull = pool.submit(requests.get, f"http://{address[0]}{PATH}Q8_0", timeout=120)
            level, started = [server.pid], []
            try:
                assert held is None or held.reached.wait(60)
                for _ in range(depth):
                    above, level = level, []
                    while not level:
                        assert not pull.done(), pull.result().text
                        level = [child for pid in above for child in _below(pid)]
                    started += [os.pidfd_open(pid) for pid in level]
            finally:
                server.kill()
            with pytest.raises(requests.ConnectionError):
                pull.result()
            for process in started:
                assert select.select([process], [], [], 60)[0]
                os.close(process)
            if held:
                held.released.set()
            log.result()
    assert Store(tmp_path / "registry").list() == ()  # else the job came to its own end
