"""The main job from the Hub: planned from headers, published while it downloads, every byte fetched once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.gguf import read_gguf
from pipeline.store import Store, local_name

WEIGHTS = "model.safetensors"


@pytest.fixture
def repo(hub: Any, demo: Path) -> Any:
    """The demo as the repository me/demo-model; its weights are in LFS."""
    files = {path.name: path.read_bytes() for path in demo.iterdir() if path.suffix in {".json", ".safetensors"}}
    files["chat_template.jinja"] = (demo / "chat_template.jinja").read_bytes()
    return hub.repo("me/demo-model", files, lfs=(".safetensors",))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the command line with a store of its own."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))

    def call(*arguments: str) -> Result:
        done = CliRunner().invoke(main, list(arguments))
        assert done.exit_code == 0, done.output
        return done

    return call


def test_plan_fetches_no_weights_and_publish_each_byte_once(hub: Any, repo: Any, run: Any, tmp_path: Path) -> None:
    """`plan` needs the header alone; `publish` then fetches the rest, and the file names repository and commit."""
    size = len(repo.commits[repo.refs["main"]][WEIGHTS])
    planned = json.loads(run("plan", "me/demo-model", "--quant", "Q4_K_M", "--json").stdout)[0]
    assert hub.sent[WEIGHTS] < size / 10
    report = json.loads(run("publish", "me/demo-model", "--quant", "Q4_K_M", "--proof", "none", "--json").stdout)
    assert hub.sent[WEIGHTS] == size
    assert report["files"][0]["size"] == planned["file_bytes"]
    assert report["source"]["commit"] == repo.refs["main"]
    store = Store(tmp_path / "registry")
    file = read_gguf(store.blob_path(report["files"][0]["digest"]))
    assert file.value("general.source.repo_url") == "https://huggingface.co/me/demo-model"
    assert file.value("gguf_pipeline.source.commit") == repo.refs["main"]
    assert file.value("general.name") == "Demo Model"


def test_a_second_publication_asks_for_nothing(hub: Any, repo: Any, run: Any) -> None:
    """With the commit recorded and the cache full, the Hub hears no more of us, and the bytes are the same."""
    assert repo.refs
    first = json.loads(run("publish", "me/demo-model", "--proof", "none", "--json").stdout)
    asked = len(hub.requests)
    second = json.loads(run("publish", "me/demo-model", "--proof", "none", "--json").stdout)
    assert len(hub.requests) == asked
    assert first["files"] == second["files"]
    assert (first["state"], second["state"]) == ("published", "unchanged")


def test_a_new_commit_is_published(hub: Any, repo: Any, run: Any) -> None:
    """What is recorded stays, whatever the branch is; `pull` takes the new commit, and it is another publication."""
    options = ("publish", "me/demo-model", "--proof", "none", "--json")
    first = json.loads(run(*options).stdout)
    files = dict(repo.commits[repo.refs["main"]])
    files["generation_config.json"] = files["generation_config.json"].replace(b'"top_k": 1', b'"top_k": 3')
    repo.commit(files)
    assert json.loads(run(*options).stdout)["state"] == "unchanged"
    run("pull", "me/demo-model")
    second = json.loads(run(*options).stdout)
    assert (second["state"], second["source"]["commit"]) == ("published", repo.refs["main"])
    assert first["source"]["commit"] != second["source"]["commit"]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])


def test_an_unchanged_model_is_not_downloaded_again(hub: Any, repo: Any, run: Any) -> None:
    """With the weights gone from the cache, the recorded commit tells that the publication is the same."""
    options = ("publish", "me/demo-model", "--proof", "none", "--json")
    assert repo.refs
    run(*options)
    before = hub.sent[WEIGHTS]
    [weights] = Path(json.loads(run(*options).stdout)["source"]["folder"]).glob("*.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    assert json.loads(run(*options).stdout)["state"] == "unchanged"
    assert hub.sent[WEIGHTS] - before < before / 10


def test_conversion_runs_while_weights_arrive(hub: Any, repo: Any, run: Any, tmp_path: Path) -> None:
    """With the download standing still in the middle, the output file exists already; it ends when the rest comes."""
    assert repo.refs
    run("plan", "me/demo-model")  # its header is here now: what is held is the rest
    fault = hub.hold(WEIGHTS, 2_000_000)
    results: list[Result] = []
    worker = threading.Thread(target=lambda: results.append(run("publish", "me/demo-model", "--proof", "none")))
    worker.start()
    try:
        assert fault.reached.wait(60)
        parts = list((tmp_path / "registry" / "blobs").iterdir())
        assert parts
        assert not Store(tmp_path / "registry").list()
    finally:
        fault.released.set()
        worker.join(60)
    assert results
    assert results[0].exit_code == 0
    assert Store(tmp_path / "registry").read_manifest(local_name("demo-model:Q4_K_M"))
