"""The build is there whole, or not there; run here on a package of the real one's shape, with the real tools."""

from __future__ import annotations

import fcntl
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.runtime.build import build_llama
from pipeline.runtime.llama import vendored_install
from pipeline.runtime.pin import Pin, home

pytestmark = pytest.mark.native  # CMake, Ninja and a compiler


def _ignore(line: str) -> None:
    pass


def test_a_build_is_installed_whole_and_movable(stand_in: Pin) -> None:
    """Programs find their libraries from the final folder, the tree stays reachable, no work folder is left."""
    install = build_llama(_ignore, stand_in)
    assert install.kind == "vendored"
    assert install.bin_dir == stand_in.install / "bin"
    answer = subprocess.run([install.program("llama-server")], capture_output=True, text=True, check=True)
    assert answer.stdout == "commit 0123456\n"
    assert install.library("ggml").exists()
    assert install.source_dir is not None
    assert (install.source_dir / "CMakeLists.txt").exists()
    assert json.loads((stand_in.install / "install.json").read_text())["commit"] == stand_in.commit
    assert "llama-server" in (stand_in.install / "build.log").read_text()
    assert not stand_in.work.exists()
    assert vendored_install(stand_in) == install


def test_a_second_call_does_nothing(stand_in: Pin) -> None:
    """What is built is not built again, not even looked for in the package."""
    build_llama(_ignore, stand_in)
    stand_in.download.unlink()
    lines: list[str] = []
    build_llama(lines.append, stand_in)
    assert len(lines) == 1


def test_an_interrupted_build_leaves_nothing_and_goes_on(stand_in: Pin) -> None:
    """Ctrl-C while compiling: no install; the next call finishes it."""

    def interrupt(line: str) -> None:
        if line.startswith("compiling"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_llama(interrupt, stand_in)
    assert not stand_in.install.exists()
    assert vendored_install(stand_in) is None
    assert build_llama(_ignore, stand_in).program("llama-server").exists()


def test_a_failed_build_shows_the_error_and_its_log(stand_in: Pin) -> None:
    """The compiler's own line is in the error, beside the log file's path, and nothing is installed."""
    broken = replace(stand_in, options=("CMAKE_C_FLAGS=-DANSWER=;",))
    with pytest.raises(ToolError) as caught:
        build_llama(_ignore, broken)
    assert "error" in str(caught.value.found)
    assert caught.value.where is not None
    assert Path(caught.value.where).read_text()
    assert not broken.install.exists()


def test_a_program_that_does_not_start_is_not_installed(stand_in: Pin) -> None:
    """A build whose llama-server fails is refused although it compiled."""
    broken = replace(stand_in, options=("CMAKE_C_FLAGS=-DANSWER=3",))
    with pytest.raises(ToolError, match="does not start"):
        build_llama(_ignore, broken)
    assert not broken.install.exists()


def test_missing_tools_are_named_before_anything_is_fetched(
    stand_in: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a compiler the error says how to get one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolError, match=r"C compiler, C\+\+ compiler not found") as caught:
        build_llama(_ignore, stand_in)
    assert caught.value.hint is not None
    assert "install" in caught.value.hint
    assert not stand_in.download.exists()


def test_two_calls_at_once_build_once(stand_in: Pin) -> None:
    """Whoever comes second waits and finds the first one's build."""
    lines: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build_llama(lines.append, stand_in), range(2))
    assert first == second
    assert lines.count("configuring") == 1


def test_a_waiting_call_says_so(stand_in: Pin) -> None:
    """A call that finds the lock taken tells its person why it stands still."""
    home().mkdir(parents=True)
    lines: list[str] = []
    waiting = threading.Event()

    def note(line: str) -> None:
        lines.append(line)
        waiting.set()

    with (home() / "lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = pool.submit(build_llama, note, stand_in)
        assert waiting.wait(30)
        assert lines == ["another build is under way; waiting for it"]
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert build.result(60).program("llama-server").exists()
