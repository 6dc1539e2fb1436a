"""Where the stores are, by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.store import local_name, local_store_root, ollama_store_root, registry_address, registry_host


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without settings, the local store is in the user's data folder and Ollama's in the home folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_store_root() == tmp_path / "data" / "gguf-pipeline" / "registry"
    assert ollama_store_root(tmp_path / "none") == tmp_path / ".ollama" / "models"
    assert (registry_address(), registry_host()) == ("127.0.0.1:11500", "localhost:11500")


def test_settings_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each place can be set."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "mine"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "theirs"))
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", "0.0.0.0:5000")
    assert local_store_root() == tmp_path / "mine"
    assert ollama_store_root(tmp_path) == tmp_path / "theirs"
    assert registry_host() == "localhost:5000"


def test_the_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "~" of a user who is not there is a place that is not there, and no crash."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", "~nobody-of-this-name/x")
    assert local_store_root() == Path.cwd() / "~nobody-of-this-name" / "x"
    monkeypatch.setenv("GGUF_PIPELINE_STORE", "~/x")
    assert local_store_root() == Path.home() / "x"


def test_the_service_store_is_taken_where_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Linux service's folder counts only while the user has none."""
    service = tmp_path / "service"
    service.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ollama_store_root(service) == service
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    assert ollama_store_root(service) == tmp_path / ".ollama" / "models"


@pytest.mark.parametrize("address", ["11500", "localhost", ":1", "host:", "host:x", "host:65536", "host:²"])
def test_a_bad_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The setting must be host:port."""
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", address)
    with pytest.raises(UsageError, match="GGUF_PIPELINE_ADDR"):
        registry_address()


@pytest.mark.parametrize(
    "text", ["demo", "localhost:11500/library/demo", "localhost:9/library/demo", "127.0.0.1:9/library/demo"]
)
def test_local_names_ignore_the_port(text: str) -> None:
    """The embedded registry's models are found under whatever port they are asked for."""
    assert str(local_name(text)) == "localhost:11500/library/demo:latest"


def test_other_hosts_stay() -> None:
    """A name of another registry is left alone."""
    assert local_name("example.org/library/demo").host == "example.org"
