"""Several processes at one store at once: all end well, or one says why; what is visible is whole at any time."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests

from pipeline.errors import UsageError
from pipeline.serve import BackgroundServer
from pipeline.store import local_name

WEIGHTS = "model.safetensors"
KIND = "several processes at once"
QUANTS = ("--quant", "Q4_0,Q8_0", "--proof", "none")
NEW = ("publish", "me/tiny@new", *QUANTS)


def _end(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for all, which must succeed, and return what they said."""
    said = ["".join(process.communicate(timeout=120)) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


@contextmanager
def _meanwhile(work: Callable[[], object]) -> Iterator[list[object]]:
    """Do *work* again and again, at least once, in a thread, until the block ends; what it returned is in the list."""
    ended, results, errors = threading.Event(), list[object](), list[BaseException]()

    def repeat() -> None:
        try:
            while not ended.is_set() or not results:
                results.append(work())
        except BaseException as error:  # it is raised again below
            errors.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield results
    finally:
        ended.set()
        thread.join(120)
    if errors:
        raise errors[0]


def _is_new(home: Any, before: Any) -> None:
    home.check_whole({tag: {digest} for tag, digest in before.new.items()})
    home.store.gc(older_than=0.0)
    assert home.files() == before.files


def test_one_model_three_times(home: Any, before: Any, tally: Any) -> None:
    """Three publications of one model that start together all succeed, and leave what one leaves."""
    with tally(KIND):
        _end([home.start(*NEW) for _ in range(3)])
        _is_new(home, before)


def test_one_download_for_two(home: Any, before: Any, tally: Any) -> None:
    """The second of two publications waits for the first one's download, and no byte comes twice."""
    with tally(KIND):
        home.run("plan", "me/tiny@new", HF_HUB_USER_AGENT_ORIGIN="both")
        fault = home.hub.hold(WEIGHTS, 30_000)
        first = home.start(*NEW, HF_HUB_USER_AGENT_ORIGIN="both")
        assert fault.reached.wait(60)
        second = home.start(*NEW, HF_HUB_USER_AGENT_ORIGIN="both")
        assert second.stderr is not None
        lines = iter(second.stderr.readline, "")
        assert any("another process downloads" in line for line in lines)
        fault.released.set()
        _end([first, second])
        assert home.fetched("both")[WEIGHTS] == 199_328
        _is_new(home, before)


def test_different_models(home: Any, before: Any, tally: Any) -> None:
    """Publications under different names do not touch each other; equal blobs are there once."""
    with tally(KIND):
        names = ("a", "b")
        _end([home.start("publish", "me/tiny@new", "--name", name, *QUANTS) for name in names])
        home.check_whole({tag: {digest} for tag, digest in before.old.items()})
        assert [home.digests(name) for name in names] == [before.new, before.new]


def test_gc_meanwhile(home: Any, before: Any, tally: Any) -> None:
    """gc, with no regard to age, takes nothing that a publication is about to name, nor its files in writing."""
    with tally(KIND), _meanwhile(lambda: home.store.gc(older_than=0.0)) as rounds:
        _end([home.start(*NEW)])
    assert len(rounds) > 1
    _is_new(home, before)


def test_gc_in_the_middle_of_writing(home: Any, before: Any, until: Any, tally: Any) -> None:
    """A gc that runs while files are half written takes what is old, and leaves those."""
    with tally(KIND):
        home.run("plan", "me/tiny@new")
        fault = home.hub.hold(WEIGHTS, 30_000)
        process = home.start(*NEW)
        assert fault.reached.wait(60)
        until(lambda: list(home.store.blobs_dir.glob(".*.part")))
        assert home.store.gc(older_than=0.0) == ()
        home.run("gc")
        fault.released.set()
        _end([process])
        _is_new(home, before)


def _remove(home: Any) -> bool:
    try:
        home.store.remove(local_name("tiny:Q8_0"))
    except UsageError:
        return False
    return True


def test_rm_meanwhile(home: Any, before: Any, tally: Any) -> None:
    """A model that is removed while it is published is there, whole, or is not; the others are not touched."""
    with tally(KIND), _meanwhile(lambda: _remove(home)) as removed:
        _end([home.start(*NEW) for _ in range(2)])
    assert any(removed)
    home.check_whole(
        {"Q4_0": {before.new["Q4_0"]}, "latest": {before.new["latest"]}, "Q8_0": {None, before.new["Q8_0"]}}
    )
    home.run(*NEW)
    _is_new(home, before)


def test_several_remove_at_once(home: Any, before: Any, tally: Any) -> None:
    """Of three `rm` of one name one succeeds, the others say that there is no such model; gc may run beside them."""
    with tally(KIND):
        processes = [home.start("rm", "tiny:Q8_0") for _ in range(3)]
        others = [home.start("gc") for _ in range(2)]
        said = ["".join(process.communicate(timeout=120)) for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 2, 2], said
        assert sum("no such model" in text for text in said) == 2
        _end(others)
        home.check_whole({"Q4_0": {before.old["Q4_0"]}, "latest": {before.old["latest"]}, "Q8_0": {None}})


def _pull(address: str) -> str:
    """Pull tiny:latest as a client does, require that every blob is what the manifest says, return its digest."""
    with requests.Session() as session:
        session.trust_env = False
        base = f"http://{address}/v2/library/tiny"
        answer = session.get(f"{base}/manifests/latest", timeout=30)
        assert answer.status_code == 200
        manifest = answer.json()
        for layer in (manifest["config"], *manifest["layers"]):
            blob = session.get(f"{base}/blobs/{layer['digest']}", timeout=30)
            assert blob.status_code == 200
            assert f"sha256:{hashlib.sha256(blob.content).hexdigest()}" == layer["digest"]
        return f"sha256:{hashlib.sha256(answer.content).hexdigest()}"


def test_pulls_meanwhile(home: Any, before: Any, tally: Any) -> None:
    """Whoever pulls while a model is replaced gets all of the old one or all of the new one."""
    with tally(KIND), BackgroundServer(home.store) as server:
        with _meanwhile(lambda: _pull(server.address)) as pulled:
            _end([home.start(*NEW)])
        assert set(pulled) <= {before.old["latest"], before.new["latest"]}
        assert pulled[0] == before.old["latest"]
        assert _pull(server.address) == before.new["latest"]


def test_one_is_killed_beside_another(again: Callable[..., Any], before: Any, tally: Any) -> None:
    """A publication is not harmed by one that is killed beside it."""
    for number in (1, 3):
        with tally(KIND):
            home = again()
            victim = home.start(*NEW, GGUF_PIPELINE_CRASH=f"blob named:{number}")
            _end([home.start(*NEW)])
            victim.communicate(timeout=120)
            home.check_whole({tag: {digest} for tag, digest in before.new.items()})
            home.run(*NEW)
            _is_new(home, before)
