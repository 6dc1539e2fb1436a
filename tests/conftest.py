"""What all tests share: strict hypothesis settings, a clean environment, the oracle."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from pipeline import data
from pipeline.runtime.llama import LlamaInstall, find_llama
from pipeline.runtime.ollama import TRIED

settings.register_profile("ours", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("ours")

ROOT = Path(__file__).resolve().parent.parent
# Another version can be tried by hand: OLLAMA_UNDER_TEST=0.34.1 make test ARGS=tests/end_to_end
OLLAMA_VERSION = os.environ.get("OLLAMA_UNDER_TEST", TRIED[-1][0])
IS_CI = os.environ.get("CI", "").lower() in {"1", "true"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the settings of the person who runs it, or writes to their home."""
    for name in list(os.environ):
        if (
            name.startswith(("HF_", "OLLAMA_", "XDG_DATA", "XDG_CONFIG", "GGUF_PIPELINE_"))
            and name != "GGUF_PIPELINE_LLAMA"
        ):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout the tests run in."""
    return ROOT


@pytest.fixture(scope="session")
def demo() -> Path:
    """The built-in demo checkpoint."""
    return ROOT / "models" / "demo"


class SilentLog:
    """A flow's log that shows nothing and remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, _text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)

    def bar(self, _text: str) -> Any:
        """Show nothing."""
        return contextlib.nullcontext(lambda _done, _total: None)


@pytest.fixture(scope="session")
def silent_log() -> SilentLog:
    """A log for calling the flow's functions."""
    return SilentLog()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """An empty folder of the test's own."""
    return tmp_path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that needs a program, or a right, and is skipped has failed: nobody would see what is not tested."""
    report = yield
    is_ours = any(item.get_closest_marker(name) for name in ("native", "ollama", "registry", "mounts", "browser"))
    if IS_CI and is_ours and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report


def _load_oracle(name: str) -> ModuleType:
    """Import tests/oracle/<name>.py once."""
    key = f"oracle_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "tests" / "oracle" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], ModuleType]:
    """Give a module of tests/oracle by its name, such as `oracle("ollama").running_ollama`."""
    return _load_oracle


@pytest.fixture(scope="session")
def _server() -> Iterator[Any]:
    with _load_oracle("hub_server").serve() as server:
        yield server


@pytest.fixture
def hub(_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty Hub, to which HF_ENDPOINT points; the real client sends nothing elsewhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_ENDPOINT", _server.hub.url)
    _server.hub.reset()
    return _server.hub


@pytest.fixture
def server(hub: Any, _server: Any) -> Any:
    """The server behind the Hub, to be taken down and up."""
    return _server


@pytest.fixture(scope="session")
def llama() -> LlamaInstall:
    """The built llama.cpp that everything is compared with."""
    found = find_llama()
    if found is None:
        pytest.skip("llama.cpp is not built: make llama")
    return found


@pytest.fixture(scope="session")
def ollama_root(llama: LlamaInstall) -> Path:
    """The program of a real Ollama, installed once into the cache folder, with the built llama.cpp beside it."""
    if shutil.which("go") is None and not (data.cache_home() / "ollama" / OLLAMA_VERSION / "bin" / "ollama").exists():
        pytest.skip("Ollama is not installed, and there is no Go 1.26 to build it")
    program: Path = _load_oracle("ollama").install_ollama(OLLAMA_VERSION, llama, data.cache_home() / "ollama", print)
    return program


@pytest.fixture
def ollama(ollama_root: Path, tmp_path: Path) -> Iterator[Any]:
    """A running Ollama with an empty store (OllamaServer of tests/oracle/ollama.py)."""
    with _load_oracle("ollama").running_ollama(ollama_root, tmp_path / "ollama") as server:
        yield server


@pytest.fixture
def docker_registry(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a docker-registry that runs until the test ends (running_registry of tests/oracle/docker_registry.py)."""
    module = _load_oracle("docker_registry")
    if module.find_program() is None:
        pytest.skip("docker-registry is not installed")
    with contextlib.ExitStack() as stack:
        count = itertools.count()
        yield lambda **options: stack.enter_context(
            module.running_registry(tmp_path / f"docker-registry-{next(count)}", **options)
        )
