"""`doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline import flow
from pipeline.cli import main
from pipeline.doctor import Finding, examine
from pipeline.serve import BackgroundServer
from pipeline.store import Store


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stores in the test's own folder, and a port where nobody listens."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("GGUF_PIPELINE_ADDR", f"127.0.0.1:{server.getsockname()[1]}")


def _finding(name: str) -> Finding:
    return next(one for one in examine() if one.name == name)


def test_every_fault_has_a_fix() -> None:
    """Whatever is not as it should be comes with what to do."""
    found = examine()
    assert len({one.name for one in found}) == len(found)
    assert all(one.ok or one.fix for one in found)


def test_the_registry_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody serves: the command that does; a served, empty one: the command that publishes; a bad address: said."""
    assert (_finding("registry").ok, _finding("registry").fix) == (False, "gguf-pipeline serve")
    with BackgroundServer(Store(tmp_path / "registry")) as server:
        monkeypatch.setenv("GGUF_PIPELINE_ADDR", server.address)
        assert (_finding("registry").ok, _finding("registry").fix) == (True, "gguf-pipeline publish demo")
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", "nonsense")
    assert not _finding("registry").ok


def test_a_password_is_not_shown() -> None:
    """What is asked about a registry may be pasted anywhere."""
    done = CliRunner().invoke(main, ["doctor", "--registry", "http://me:secret@127.0.0.1:1"])
    assert done.exit_code == 4
    assert "http://127.0.0.1:1: nobody listens there" in done.stdout
    assert "secret" not in done.output


def test_a_store_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder is found before a publication fails on it."""
    monkeypatch.setattr("pipeline.doctor.os.access", lambda *_: False)  # root may write everywhere
    found = _finding("our registry")
    assert (found.ok, "GGUF_PIPELINE_STORE" in str(found.fix)) == (False, True)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a common model needs is a fault, with the setting that moves the store."""

    class Usage:
        free = 1_000_000

    monkeypatch.setattr("pipeline.doctor.shutil.disk_usage", lambda _path: Usage())
    for name, setting in (("our registry", "GGUF_PIPELINE_STORE"), ("Hub's cache", "HF_HOME")):
        found: Any = _finding(name)
        assert (found.ok, setting in found.fix) == (False, True)


def _tokenizer(model: str | Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--tokenizer", str(model), *options])


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A checkpoint with both files of SentencePiece."""
    return Path(shutil.copytree(repository / "tests" / "fixtures" / "arch" / "llama2", tmp_path / "copied"))


@pytest.mark.native
def test_an_equal_tokenizer_is_said_to_be(llama: Any, repository: Path) -> None:
    """Where every text is cut alike nothing else is said."""
    assert llama
    done = _tokenizer(repository / "tests" / "fixtures" / "arch" / "llama3")
    assert done.exit_code == 0
    assert done.stdout == "[ok] equal: 96 of 96 texts, cut as by tokenizers on tokenizer.json\n"


@pytest.mark.native
def test_known_limits_are_named(llama: Any) -> None:
    """A difference that is a limit of the engine is counted by its name, and is no failure."""
    assert llama
    done = _tokenizer("demo")
    assert done.exit_code == 0
    assert "known limit: llama.cpp has no NFC normalizer (8: " in done.stdout
    found = json.loads(_tokenizer("demo", "--json").stdout)
    assert (found["state"], found["limits"]["nfc"]["texts"]) == ("known limit", 8)
    assert {(one["state"], *one["limits"]) for one in found["differences"]} == {("known limit", "nfc")}


@pytest.mark.native
def test_a_tokenizer_that_differs_is_an_error(llama: Any, copied: Path) -> None:
    """Files that disagree in what no limit explains end with exit code 3, and the report has the ids of both."""
    assert llama
    document = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    document["model"]["merges"].reverse()
    (copied / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    done = _tokenizer(copied)
    assert done.exit_code == 3
    assert "[!!] different: " in done.stdout
    assert "otherwise than the model's own tokenizer" in done.stderr
    done = _tokenizer(copied, "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert found["state"] == "different"
    first = next(one for one in found["differences"] if one["state"] == "different")
    assert first["expected"] != first["found"]
    assert first["limits"] == []


@pytest.mark.native
def test_no_weights_are_fetched(llama: Any, hub: Any, repository: Path) -> None:
    """The headers and the tokenizer's files of a repository are enough."""
    assert llama
    folder = repository / "models" / "demo"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    hub.repo("me/demo", files, lfs=(".safetensors",))
    assert _tokenizer("me/demo").exit_code == 0
    assert 0 < hub.sent["model.safetensors"] < len(files["model.safetensors"]) / 4


def test_a_gguf_has_nothing_to_compare_with(tmp_path: Path, silent_log: Any) -> None:
    """A GGUF is refused with the next step."""
    flow.convert("demo", tmp_path / "demo.gguf", "F32", silent_log)
    done = _tokenizer(tmp_path / "demo.gguf")
    assert done.exit_code == 2
    assert "name the checkpoint" in done.stderr
