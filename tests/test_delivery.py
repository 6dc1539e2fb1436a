"""One release at several targets: the same bytes at each, and one that fails harms no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.report import reports_folder
from pipeline.store import Store

Run = Callable[..., Result]
BOTH = ("publish", "demo", "--quant", "Q4_0,Q8_0", "--proof", "none", "--to", "local", "--to", "ollama")


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """The stores of the targets `local` and `ollama`, in the test's own folder; no Ollama is asked."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "local"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    return Store(tmp_path / "local"), Store(tmp_path / "ollama")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def _shown(store: Store) -> dict[str, str]:
    return {entry.name.tag: entry.digest for entry in store.list()}


def test_every_target_gets_the_same(stores: tuple[Store, Store]) -> None:
    """Both quantizations, all tags, byte for byte the same manifests; the report and the commands name both targets."""
    done = _run(*BOTH, "--tag", "v1", "--tag", "{quant}-v1", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    local, ollama = map(_shown, stores)
    assert local == ollama
    assert set(local) == {"Q4_0", "latest", "v1", "Q4_0-v1", "Q8_0", "Q8_0-v1"}
    assert local["v1"] == local["latest"] == local["Q4_0"] != local["Q8_0"] == local["Q8_0-v1"]
    assert [(one["target"], one["state"]) for one in report["targets"]] == [
        ("local", "published"),
        ("ollama", "published"),
    ]
    assert {"gguf-pipeline serve", "ollama run localhost:11500/library/demo:Q8_0"} <= set(report["commands"])
    assert {"Q4_0 layers in local", "Q4_0 layers in ollama"} <= {check["name"] for check in report["checks"]}
    for store in stores:
        assert all(found.ok for entry in store.list() for found in store.verify(entry.name))


def test_no_latest(stores: tuple[Store, Store]) -> None:
    """With --no-latest only the tags that were asked for are there."""
    assert _run("publish", "demo", "--quant", "Q4_0", "--proof", "none", "--no-latest").exit_code == 0
    assert set(_shown(stores[0])) == {"Q4_0"}


@pytest.mark.parametrize("tag", ["a/b", "cloud", "-x", "{quant}-cloud", ""])
def test_a_bad_tag_is_refused_before_any_work(tag: str, stores: tuple[Store, Store]) -> None:
    """A tag that no registry or not Ollama takes is wrong usage, and nothing is read or written."""
    done = _run(*BOTH, "--tag", tag)
    assert (done.exit_code, "reading" in done.output) == (2, False)
    assert not any(store.root.exists() for store in stores)


def test_a_target_that_fails_harms_no_other(stores: tuple[Store, Store]) -> None:
    """One has the model, whole; the other shows nothing new, the command fails, and the report says both."""
    local, ollama = stores
    (ollama.manifests_dir / "localhost:11500").mkdir(parents=True)
    (ollama.manifests_dir / "localhost:11500" / "library").write_text("in the way")
    done = _run(*BOTH)
    assert done.exit_code == 4
    assert "the other targets have the model" in done.output
    assert set(_shown(local)) == {"Q4_0", "latest", "Q8_0"}
    assert _shown(ollama) == {}
    [path] = (Path(line.split("see ")[1]) for line in done.output.splitlines() if "see " in line)
    states = {one["target"]: one["state"] for one in json.loads(path.read_text())["targets"]}
    assert states == {"local": "published", "ollama": "failed"}

    (ollama.manifests_dir / "localhost:11500" / "library").unlink()
    again: dict[str, Any] = json.loads(_run(*BOTH, "--json").stdout)
    states = {one["target"]: one["state"] for one in again["targets"]}
    assert states == {"local": "unchanged", "ollama": "published"}
    assert _shown(ollama) == _shown(local)
    assert json.loads(_run(*BOTH, "--json").stdout)["state"] == "unchanged"


def test_where_every_target_fails_there_is_no_report(stores: tuple[Store, Store]) -> None:
    """Nothing is visible anywhere, and no report says so."""
    for store in stores:
        (store.manifests_dir / "localhost:11500").mkdir(parents=True)
        (store.manifests_dir / "localhost:11500" / "library").write_text("in the way")
    assert _run(*BOTH).exit_code == 4
    assert [_shown(store) for store in stores] == [{}, {}]
    assert not reports_folder().exists()
