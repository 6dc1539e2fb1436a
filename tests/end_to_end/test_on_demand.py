"""A real Ollama pulls what is not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.serve import BackgroundServer, Demand, Offers, Settings
from pipeline.store import Store

pytestmark = [pytest.mark.native, pytest.mark.ollama]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The registry's store, empty."""
    return Store(tmp_path / "registry")


@pytest.fixture
def registry(hub: Any, demo: Path, store: Store) -> Iterator[str]:
    """A registry that makes the demo, which is the repository Me/Demo-Model on the Hub, at its first pull."""
    files = {p.name: p.read_bytes() for p in demo.iterdir() if p.suffix in {".json", ".safetensors", ".jinja"}}
    hub.repo("Me/Demo-Model", files, lfs=(".safetensors",))
    with BackgroundServer(store, settings=Settings(on_demand=Demand(Offers(["Me/*"]), store.root))) as server:
        yield server.registry


def test_the_first_pull_makes_the_model(ollama: Any, registry: str, store: Store) -> None:
    """The pull waits until the model is made, gets it whole, and it answers; `latest` is not moved by it."""
    name = f"{registry}/hf/me-demo-model:Q5_K_M"
    ollama.cli("pull", "--insecure", name)
    (entry,) = store.list()
    assert (entry.name.repository, entry.name.tag) == ("hf/me-demo-model", "Q5_K_M")
    answer = ollama.post("/api/chat", model=name, messages=[{"role": "user", "content": "What is Q4_K_M?"}])
    assert answer["message"]["content"].startswith("Q4_K_M is a 4-bit K-quant mix")
    ollama.cli("pull", "--insecure", f"{registry}/hf/me-demo-model")
    assert sorted(one.name.tag for one in store.list()) == ["Q4_K_M", "Q5_K_M", "latest"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf/me-nothing:Q4_K_M", "its owner may allow it"),
        ("hf/me-demo-model:Q9", "there are latest, BF16, F16"),
        ("library/demo", "file does not exist"),
    ],
)
def test_what_the_user_of_ollama_is_told(ollama: Any, registry: str, name: str, told: str) -> None:
    """What is not made is refused in words that reach the terminal."""
    done = ollama.cli("pull", "--insecure", f"{registry}/{name}", check=False)
    assert done.returncode != 0
    assert told in done.stderr


def test_a_failure_reaches_the_terminal(ollama: Any, registry: str, hub: Any, store: Store) -> None:
    """A model that can not be made fails with the reason, and with the same one at once when asked again."""
    commit = next(iter(hub.repos["Me/Demo-Model"].commits.values()))
    hub.repo("Me/Broken", {**commit, "config.json": b'{"architectures": ["NoSuchModel"]}'})
    name = f"{registry}/hf/me-broken:Q4_K_M"
    told = [ollama.cli("pull", "--insecure", name, check=False).stderr for _ in range(2)]
    assert all("NoSuchModel" in text for text in told)
    assert told[0].splitlines()[-1] == told[1].splitlines()[-1]
    assert store.list() == ()
