"""The store's lock, between processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.store import locks

_HOLDER = """
import sys
from pathlib import Path
from pipeline.store import locks
with getattr(locks, sys.argv[2])(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holding(repository: Path, tmp_path: Path) -> Callable[[str], object]:
    """Hold a lock of the given kind in another process, as a context manager."""

    @contextmanager
    def hold(kind: str) -> Iterator[Callable[[], object]]:
        command = [sys.executable, "-c", _HOLDER, str(tmp_path), kind]
        with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            try:
                yield process.stdin.close
            finally:
                process.stdin.close()
                process.wait()

    return hold


def test_writers_share(holding: Callable[[str], object], tmp_path: Path) -> None:
    """Two writers work at the same time, without a word."""
    said: list[str] = []
    with holding("shared"), locks.shared(tmp_path, said.append):
        assert said == []


@pytest.mark.parametrize(
    ("theirs", "ours"), [("shared", "exclusive"), ("exclusive", "shared"), ("exclusive", "exclusive")]
)
def test_removal_waits_and_says_so(holding: Callable[..., object], tmp_path: Path, theirs: str, ours: str) -> None:
    """Removal and writing exclude each other; the one that waits says so and goes on when the other ends."""
    waits, entered = threading.Event(), threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    def wait() -> None:
        with getattr(locks, ours)(tmp_path, say):
            entered.set()

    with holding(theirs) as release:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(20)
        assert not entered.is_set()
        release()
        assert entered.wait(20)
        thread.join()
    assert said == [f"waiting for another gguf-pipeline that works on {tmp_path}"]


def test_a_killed_process_holds_nothing(repository: Path, tmp_path: Path) -> None:
    """The lock dies with its holder."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path), "exclusive"]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    with locks.exclusive(tmp_path, pytest.fail):
        pass


def test_sweeping_never_waits(tmp_path: Path) -> None:
    """While a file is staged, a sweep is told no at once."""
    with locks.staging(tmp_path), locks.sweeping(tmp_path) as alone:
        assert not alone
    with locks.sweeping(tmp_path) as alone:
        assert alone
