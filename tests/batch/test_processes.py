"""Every call has a process of its own, which ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.batch import ProcessPerJob
from pipeline.errors import InputError, PipelineError, ToolError


def _bad() -> None:
    raise InputError("is bad", where="here")


def test_answers_and_errors_come_back() -> None:
    """A value, an error of ours with its parts, and any other error."""
    executor = ProcessPerJob()
    good, ours, other = executor.submit(pow, 2, 5), executor.submit(_bad), executor.submit(int, "x")
    assert good.result(60) == 32
    with pytest.raises(InputError, match="here: is bad"):
        ours.result(60)
    with pytest.raises(ValueError, match="invalid literal"):
        other.result(60)
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(pow, 2, 5)


def test_a_crash_is_one_jobs_failure() -> None:
    """A process that is killed gives an error with a next step, and the others go on."""
    executor = ProcessPerJob()
    killed, other = executor.submit(signal.raise_signal, signal.SIGKILL), executor.submit(pow, 2, 5)
    with pytest.raises(ToolError, match=r"(?s)SIGKILL.*--memory"):
        killed.result(60)
    assert other.result(60) == 32
    executor.shutdown()


class _Interrupting:
    """Raises SIGINT in the process that unpickles it, which is before any line of ours runs there."""

    def __reduce__(self) -> tuple[object, ...]:
        return signal.raise_signal, (signal.SIGINT,)


def test_ctrl_c_while_a_process_starts() -> None:
    """The parent decides who stops, from the first moment on; what the job starts may be interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with ProcessPerJob() as executor:
        assert executor.submit(repr, _Interrupting()).result() == "None"
        assert executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_stopping_lets_them_clean_up(tmp_path: Path) -> None:
    """With cancel_futures the running processes are asked to stop, and do what `finally` says."""
    executor = ProcessPerJob()
    future = executor.submit(_until_stopped, tmp_path)
    _wait_for(tmp_path / "began")
    executor.shutdown(cancel_futures=True)
    assert (tmp_path / "cleaned").exists()
    assert isinstance(future.exception(10), PipelineError)


def _until_stopped(folder: Path) -> None:
    try:
        (folder / "began").touch()
        threading.Event().wait(60)
    finally:
        (folder / "cleaned").touch()


def test_none_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    """If the parent is killed without a word, its processes stop in order."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from pipeline.batch import ProcessPerJob; import test_processes as module\n"
        "if __name__ == '__main__': ProcessPerJob().submit(module._until_stopped, Path(sys.argv[1])).result()"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, tmp_path, Path(__file__).parent])
    _wait_for(tmp_path / "began")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_for(tmp_path / "cleaned")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
