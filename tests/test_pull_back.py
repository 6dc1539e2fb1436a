"""The proof `full`: what was published is pulled back, hashed, and asked a question."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import bcrypt
import pytest
from click.testing import CliRunner, Result

from pipeline import data, flow
from pipeline.cli import main
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Store, local_name

TOKEN = "t" * 20
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Publish the demo with stores of the test's own; no Ollama is asked."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "local"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")

    def call(*options: str) -> Result:
        return CliRunner().invoke(main, ["publish", "demo", "--quant", "Q4_0", *options, "--json"])

    return call


def _checks(done: Result) -> dict[str, dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    return {name: check for name, check in found.items() if "pull" in name and name.startswith("Q4_0")}


@pytest.mark.native
@pytest.mark.usefixtures("llama")
def test_every_target_is_pulled_from(run: Run, tmp_path: Path) -> None:
    """From each target the file comes whole and answers as before; nothing of it is left, and it is not done twice."""
    options = ("--to", "local", "--to", "ollama", "--proof", "full")
    checks = _checks(run(*options))
    assert {name: check["state"] for name, check in checks.items()} == {
        "Q4_0 pulled from local": "proven",
        "Q4_0 answer after the pull": "proven",
        "Q4_0 pulled from ollama": "proven",
    }
    assert "bytes in 4 parts, each blob hashed" in checks["Q4_0 pulled from local"]["detail"]
    assert "the same as before" in checks["Q4_0 answer after the pull"]["detail"]
    assert not list((data.cache_home() / "pull").iterdir())
    assert json.loads(run(*options).stdout)["state"] == "unchanged"


@pytest.mark.native
@pytest.mark.usefixtures("llama")
def test_a_target_with_manifests_of_its_own(run: Run, oracle: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """The Hub writes its manifests itself: what it was sent is not pulled, and the command that would is named."""
    with oracle("hub_harness").open_harness("hub", tmp_path):
        checks = _checks(run("--to", "local", "--to", "hf:library/demo", "--proof", "full"))
        alone = _checks(run("--to", "hf:library/demo", "--proof", "full"))
    assert checks["Q4_0 pulled from local"]["state"] == "proven"
    for pulled, does in ((checks["Q4_0 pulled from hf:library/demo"], "run"), (alone.popitem()[1], "pull")):
        assert (pulled["state"], pulled["command"]) == ("not checked", f"ollama {does} hf.co/library/demo:Q4_0")


@pytest.mark.native
@pytest.mark.usefixtures("llama")
def test_what_is_there_is_proven_without_making_it_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a quick proof, the full one only pulls; a quick one is then wanted no more."""
    assert not _checks(run())
    monkeypatch.setattr(flow, "write", None)
    assert {check["state"] for check in _checks(run("--proof", "full")).values()} == {"proven"}
    assert json.loads(run().stdout)["state"] == "unchanged"


@pytest.mark.native
@pytest.mark.usefixtures("llama")
def test_a_blob_that_went_bad_is_found(run: Run, tmp_path: Path) -> None:
    """A byte that changed on the disk after the publication is a difference: exit code 3, and it is not recorded."""
    assert run().exit_code == 0
    store = Store(tmp_path / "local")
    blob = store.model_path(local_name("demo:Q4_0"))
    with blob.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\xff" * 10)
    for _ in range(2):
        done = run("--proof", "full")
        assert done.exit_code == 3
        assert "what comes back is not what was published" in done.output
    assert _checks(run("--proof", "full", "--again"))


@pytest.mark.registry
@pytest.mark.parametrize("place", ["in the address", "of docker login"])
def test_from_a_registry_that_wants_a_login_to_read(
    place: str, run: Run, docker_registry: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What publishing took is taken for the pull, too, and that is said; it is nowhere written down."""
    (tmp_path / "htpasswd").write_bytes(b"me:" + bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)) + b"\n")
    registry = docker_registry(auth={"htpasswd": {"realm": "closed", "path": str(tmp_path / "htpasswd")}})
    target = f"http://{registry.host}"
    if place == "of docker login":
        auth = {"auths": {registry.host: {"username": "me", "password": "s3cret"}}}
        (tmp_path / "config.json").write_text(json.dumps(auth), encoding="utf-8")
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    done = run("--to", target if place == "of docker login" else f"http://me:s3cret@{registry.host}", "--proof", "full")
    checks = {name: check for name, check in _checks(done).items() if "pulled from" in name}
    ((name, check),) = checks.items()
    assert (name.endswith(registry.host), check["state"]) == (True, "proven"), check
    assert "with the login that the registry asks for" in check["detail"]
    assert "s3cret" not in done.output


def test_from_a_registry(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry on the network is pulled from as Ollama would, without the login that publishing took."""
    monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", TOKEN)
    with BackgroundServer(Store(tmp_path / "there"), settings=Settings(token=TOKEN)) as server:
        target = f"http://{server.registry}"
        checks = _checks(run("--to", target, "--proof", "full"))
    check = checks[f"Q4_0 pulled from {target}"]
    assert (check["state"], "login" in check["detail"]) == ("proven", False)
