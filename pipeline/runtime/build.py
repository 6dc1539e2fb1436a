"""Builds the pinned llama.cpp: pin in, a finished folder in the cache out, or nothing there at all.

`python -m pipeline.runtime.build` is what `make llama` runs.  Nothing else in the package calls it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError, ResourceError, ToolError
from pipeline.runtime.bindings import install_bindings
from pipeline.runtime.fetch import Log, unpack_source
from pipeline.runtime.llama import LIBRARY_SUFFIX, MARKER, LlamaInstall, vendored_install
from pipeline.runtime.pin import Pin, home, read_pin

_NEEDED_BYTES = 1 << 30
_BYTES_PER_JOB = 3 << 29  # 1.5 GiB: the largest translation units of llama-server
_PROGRESS_SECONDS = 5.0


def build_llama(log: Log, pin: Pin | None = None) -> LlamaInstall:
    """Fetch, check, unpack and compile the pinned llama.cpp, unless this machine's build is there already.

    Two calls at once, in any processes, build once.  An interrupted call leaves no install, and the next one goes on.

    Raises:
        ToolError: if CMake, Ninja or a compiler is missing, or the build fails; the log file's path is in it.
        AccessError: if the source package cannot be fetched.
        ResourceError: if the disk is too full.
    """
    pin = pin or read_pin()
    with _locked(log):
        if vendored_install(pin) is None:
            _check_tools()
            _check_disk()
            _compile(pin, unpack_source(pin, log), log)
            _install(pin)
        unpack_source(pin, log)
        found = vendored_install(pin)
    if found is None:  # somebody else empties the cache folder
        raise ToolError("the build vanished as soon as it was made", where=pin.install)
    log(f"llama.cpp {pin.short_commit} is in {found.bin_dir}")
    return found


@contextlib.contextmanager
def _locked(log: Log) -> Iterator[None]:
    """Hold the one lock of the build folder; the system frees it when the process ends, however it ends."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another build is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_tools() -> None:
    """Refuse before the download if a tool is missing."""
    candidates = {
        "cmake": ["cmake"],
        "ninja": ["ninja", "ninja-build"],
        "C compiler": [os.environ.get("CC", "cc"), "gcc", "clang"],
        "C++ compiler": [os.environ.get("CXX", "c++"), "g++", "clang++"],
    }
    path = _search_path()
    missing = [tool for tool, names in candidates.items() if not any(shutil.which(name, path=path) for name in names)]
    if missing:
        brew = "xcode-select --install && brew install cmake ninja"
        apt = "apt-get install cmake ninja-build g++"
        raise ToolError(
            f"llama.cpp cannot be built: {', '.join(missing)} not found",
            hint=f"{brew if sys.platform == 'darwin' else apt}  (pip install cmake ninja does for these two)",
        )


def _search_path() -> str:
    """PATH, with the folder of this Python first: pip installs cmake and ninja there."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _check_disk() -> None:
    free = shutil.disk_usage(home()).free
    if free < _NEEDED_BYTES:
        raise ResourceError(
            "the disk is too full to build llama.cpp",
            where=home(),
            expected=f"{_NEEDED_BYTES / 2**30:.1f} GiB free",
            found=f"{free / 2**30:.1f} GiB",
            hint="free some space, or set XDG_CACHE_HOME to a folder on another disk",
        )


def _compile(pin: Pin, source: Path, log: Log) -> None:
    """Configure and build in the work folder; all output goes to build.log there."""
    pin.work.mkdir(parents=True, exist_ok=True)
    log_file = pin.work / "build.log"
    log_file.write_text("", encoding="utf-8")
    origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    # A run path relative to the library lets the finished folder be renamed; the commit is stated, since the package
    # has no git history that tells it.
    ours = [
        f"CMAKE_INSTALL_RPATH={origin}",
        "CMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        f"LLAMA_BUILD_COMMIT={pin.short_commit}",
        "LLAMA_BUILD_NUMBER=0",
    ]
    options = [f"-D{entry}" for entry in (*pin.options, *ours)]
    log("configuring")
    _run(["cmake", "-S", str(source), "-B", str(pin.work), "-G", "Ninja", *options], log_file, log)
    log(f"compiling {len(pin.targets)} targets with {_n_jobs()} jobs (about a quarter of an hour on 2 cores)")
    _run(["cmake", "--build", str(pin.work), "--parallel", str(_n_jobs()), "--target", *pin.targets], log_file, log)


def _n_jobs() -> int:
    """As many compilers as there are cores for this process, and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // _BYTES_PER_JOB))


def _run(command: list[str], log_file: Path, log: Log) -> None:
    """Run a step of the build, copying its output to the log file and Ninja's counter to *log*."""
    # The git of another repository around the cache folder must not name the commit.
    environment = {**os.environ, "PATH": _search_path(), "GIT_CEILING_DIRECTORIES": str(home())}
    with (
        log_file.open("a", encoding="utf-8") as copy,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        try:
            last = time.monotonic()
            for line in child.stdout or ():
                copy.write(line)
                step = re.match(r"\[\d+/\d+\]", line)
                if step and time.monotonic() - last >= _PROGRESS_SECONDS:
                    last = time.monotonic()
                    log(f"{step[0]} compiled")
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise ToolError(
            f"building llama.cpp failed: {Path(command[0]).name} ended with {child.returncode}",
            where=log_file,
            found=_errors_of(log_file),
            hint="the whole output is in that file; `make llama` goes on where it stopped",
        )


def _errors_of(log_file: Path) -> str:
    """The lines that name an error, at most ten, else the last ten lines."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in lines if re.search(r"\berror\b|CMake Error|^FAILED", line)]
    return "\n".join((named or lines)[-10:])


def _install(pin: Pin) -> None:
    """Copy what was built into a new folder, try it there, and give it its name in one step."""
    staging = pin.install.with_name(f"{pin.install.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    shutil.copytree(pin.work / "bin", staging / "bin", symlinks=True)
    shutil.copy2(pin.work / "build.log", staging / "build.log")
    _check_build(pin, staging / "bin")
    about = {"commit": pin.commit, "ggml_version": pin.ggml_version, "package": pin.version, "options": pin.options}
    (staging / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(pin.install, ignore_errors=True)
    staging.replace(pin.install)
    shutil.rmtree(pin.work, ignore_errors=True)


def _check_build(pin: Pin, bin_dir: Path) -> None:
    """Every target is there, and every program starts from its new place."""
    for target in pin.targets:
        is_program = target.startswith("llama-")
        path = bin_dir / (target if is_program else f"lib{target}{LIBRARY_SUFFIX}")
        if not path.exists():
            raise ToolError("the build made no such file", where=path, hint=f"see {pin.work / 'build.log'}")
    if "llama-server" in pin.targets:
        answer = subprocess.run(
            [bin_dir / "llama-server", "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if answer.returncode or pin.short_commit not in answer.stdout + answer.stderr:
            raise ToolError(
                "the built llama-server does not start",
                where=bin_dir / "llama-server",
                expected=f"a version with commit {pin.short_commit}",
                found=(answer.stdout + answer.stderr).strip() or f"exit status {answer.returncode}",
            )


def main(arguments: list[str] | None = None) -> int:
    """Build, say what happens on stderr, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.runtime.build", description="Build the vendored llama.cpp."
    )
    parser.add_argument(
        "--bindings", action="store_true", help="install llama.cpp's Python bindings into this environment too"
    )
    wanted = parser.parse_args(arguments)
    start = time.monotonic()

    def log(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - start:5.0f} s] {line}\n")
        sys.stderr.flush()

    try:
        build_llama(log)
        if wanted.bindings:
            install_bindings(log)
    except PipelineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
