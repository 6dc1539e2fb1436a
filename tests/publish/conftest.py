"""A small release, and every kind of target with nothing in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.patience import Patience
from pipeline.publish import Release, ReleaseEntry
from pipeline.types import Blob

# Where tests/oracle opens each kind of target, by the kind's name; a target without a line here fails its contract.
HARNESSES = {
    "hub": "hub_harness",
    "local": "store_harness",
    "ollama": "store_harness",
    "registry": "registry_harness",
    "static": "static_harness",
}
MARKS = {"registry": [pytest.mark.registry]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a harness once for each kind of target."""
    if "harness" in metafunc.fixturenames:
        kinds = [pytest.param(kind, marks=MARKS.get(kind, [])) for kind in HARNESSES]
        metafunc.parametrize("harness", kinds, indirect=True)


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, oracle: Callable[[str], ModuleType], tmp_path: Path, _folders: None
) -> Iterator[Any]:
    """A target with nothing in it.

    It has `text`, to write after --to; `visible()`, the digests of each model's blobs by "namespace/model:tag", the
    GGUF's first; `blob(digest)`, the content of one; and `faults`, contexts in which no publication can succeed.
    """
    with oracle(HARNESSES[request.param]).open_harness(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def kinds() -> set[str]:
    """The kinds of targets that have a harness."""
    return set(HARNESSES)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store lies in the test's own folder, no Ollama is asked, and nobody waits before trying again."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "local"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")  # nobody listens on port 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr("pipeline.publish._wire.PATIENCE", Patience(pause=lambda _event, _seconds: None))


@pytest.fixture
def entry() -> Callable[..., ReleaseEntry]:
    """Write a stand-in for a GGUF to a path, and make its entry."""

    def make(path: Path, tags: tuple[str, ...] = ("Q4_K_M", "latest"), data: bytes = b"GGUF") -> ReleaseEntry:
        path.write_bytes(data)
        return ReleaseEntry(
            tags=tags,
            gguf=path,
            gguf_blob=Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)),
            architecture="qwen2",
            parameter_count=2_622_208,
            file_type="Q4_K_M",
            system="Be <brief> & kind.",
            params={"temperature": 0.7, "stop": ["<|im_end|>"], "num_ctx": 4096},
            messages=[("user", "hé"), ("assistant", "<b>")],
            licenses=["MIT", "Apache-2.0"],
        )

    return make


@pytest.fixture
def release() -> Callable[..., Release]:
    """Make the release library/demo of some entries."""

    def make(*entries: ReleaseEntry) -> Release:
        return Release("library", "demo", entries)

    return make
