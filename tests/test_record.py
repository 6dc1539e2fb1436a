"""A publication is skipped if it would give what is there, and only then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import blueprint, data, flow, provenance, record
from pipeline.checkpoint import open_checkpoint
from pipeline.cli import main
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Store, local_name

Publish = Callable[..., dict[str, Any]]

QUICKLY = ("--quant", "Q4_0,Q8_0", "--proof", "none", "--errors", "none")


@pytest.fixture
def model(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo, to be changed."""
    return Path(shutil.copytree(demo, tmp_path / "my-model"))


@pytest.fixture
def publish(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish the copy with more options, and return the report."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))

    def call(*options: str | Path) -> dict[str, Any]:
        done = CliRunner().invoke(main, ["publish", str(model), *QUICKLY, *map(str, options), "--json"])
        assert done.exit_code == 0, done.output
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    return call


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written a moment ago are taken for old: no later change happens in the same tick."""
    monkeypatch.setattr(provenance, "_TICK_NS", 0)


def _spoil(path: Path) -> None:
    """Change one weight in place and set the file's time back, so that only its content and its change time differ."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        old = file.read(1)
        file.seek(-2000, os.SEEK_END)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


FILES: dict[str, Callable[[Path], object]] = {
    "a weight": lambda folder: _spoil(folder / "model.safetensors"),
    "the sampling": lambda folder: _edit(folder / "generation_config.json", '"top_k": 1', '"top_k": 2'),
    "the template": lambda folder: _edit(folder / "chat_template.jinja", "{", " {"),
    "the config": lambda folder: _edit(folder / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    "a licence": lambda folder: (folder / "LICENSE").write_text("Do as you like."),
    "a token": lambda folder: [
        _edit(folder / name, "<|endoftext|>", "<|end|>") for name in ("tokenizer.json", "tokenizer_config.json")
    ],
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("tick", [0, 2_000_000_000], ids=["settled", "lately written"])
def test_every_file_counts(
    what: str, tick: int, model: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of any file that goes into the publication is noticed, in place and with the old time too."""
    monkeypatch.setattr(provenance, "_TICK_NS", tick)
    first = publish()
    assert publish()["state"] == "unchanged"
    FILES[what](model)
    second = publish()
    assert (first["state"], second["state"]) == ("published", "published")
    assert [one["manifest"] for one in first["files"]] != [one["manifest"] for one in second["files"]]
    assert publish()["state"] == "unchanged"


OPTIONS: dict[str, tuple[str, ...]] = {
    "other quantizations": ("--quant", "Q4_0,Q5_K_S"),
    "another order": ("--quant", "Q8_0,Q4_0"),
    "a parameter": ("--parameter", "temperature=0.5"),
    "the context": ("--num-ctx", "256"),
    "a system prompt": ("--system", "Be brief."),
    "a template": ("--with-template",),
    "a name": ("--name", "me/other"),
    "a tag": ("--tag", "v1"),
    "no latest": ("--tag", "v2", "--no-latest"),
    "errors": ("--errors", "sample"),
    "a proof": ("--proof", "quick"),
    "again": ("--again",),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("what", OPTIONS)
def test_every_option_counts(what: str, publish: Publish) -> None:
    """An option that changes bytes, names, or what is proven is noticed, and a second time it is as before."""
    publish()
    assert publish(*OPTIONS[what])["state"] == "published"
    again = tuple(option for option in OPTIONS[what] if option != "--again")
    assert publish(*again)["state"] == "unchanged"


@pytest.mark.usefixtures("settled")
def test_templates_of_ones_own_count(publish: Publish, tmp_path: Path) -> None:
    """A family in the folder of --templates that changes its sampling changes the publication."""
    family = tmp_path / "mine" / "chat" / "chatml.j2"
    family.parent.mkdir(parents=True)
    shutil.copy(data.path("templates") / "chat" / "chatml.j2", family)
    states = [publish("--templates", tmp_path / "mine")["state"]]
    _edit(family, "#}", "[sampling]\nrepeat_last_n = 32\n#}")
    states += [publish("--templates", tmp_path / "mine")["state"] for _ in range(2)]
    assert states == ["published", "published", "unchanged"]


def test_an_adapter_counts(publish: Publish, model: Path, tmp_path: Path, oracle: Any) -> None:
    """Other weights in the adapter's folder are another publication, and the same ones are not."""
    rng = np.random.default_rng(0)
    n_out, n_in = open_checkpoint(model).tensors["model.layers.0.self_attn.q_proj.weight"].shape
    module = "model.layers.0.self_attn.q_proj"
    pair = {"lora_A": rng.normal(size=(4, n_in)), "lora_B": rng.normal(size=(n_out, 4))}
    adapter = oracle("adapters").save_adapter(
        tmp_path / "lora", {f"{module}.{name}.weight": array.astype(np.float32) for name, array in pair.items()}
    )
    assert publish("--adapter", adapter)["state"] == "published"
    assert publish("--adapter", adapter)["state"] == "unchanged"
    _spoil(adapter / "adapter_model.safetensors")
    assert publish("--adapter", adapter)["state"] == "published"


@pytest.mark.usefixtures("settled")
def test_a_new_byte_version_counts(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tool writes other bytes than before, everything is made again."""
    publish()
    for module in (blueprint, record):
        monkeypatch.setattr(module, "BYTE_VERSION", blueprint.BYTE_VERSION + 1)
    assert publish()["state"] == "published"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("options", [("--threads", "1"), ("--proof", "none")], ids=["threads", "proof"])
def test_what_changes_nothing_does_not_count(publish: Publish, options: tuple[str, ...]) -> None:
    """Threads change no byte, and what was proven better than is wanted now is proven."""
    publish("--proof", "quick", "--errors", "sample")
    assert publish(*options)["state"] == "unchanged"


def test_a_touched_file_is_read_and_recognised(model: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another time and inode but the same content is hashed once, and known at a glance from then on."""
    monkeypatch.setattr(provenance, "_TICK_NS", 0)
    publish()
    shutil.copy(model / "model.safetensors", model / "copy")
    (model / "copy").replace(model / "model.safetensors")
    assert publish()["state"] == "unchanged"
    monkeypatch.setattr(flow, "prepare", None)
    assert publish()["state"] == "unchanged"


@pytest.mark.usefixtures("settled")
def test_nothing_is_read_where_all_looks_as_before(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a glance: neither the tokenizer nor a header is read, and no file is hashed."""
    first = publish()
    monkeypatch.setattr(flow, "prepare", None)
    monkeypatch.setattr(provenance, "_sha256", None)
    second = publish()
    assert second["state"] == "unchanged"
    for key in ("files", "commands", "sources", "checks", "path"):
        assert second[key] == first[key]


def test_a_file_of_this_very_moment_is_not_trusted(publish: Publish) -> None:
    """What was written within a tick of the clock may be written again unseen, so it is hashed the next time."""
    report = publish()
    assert report["look"] is None
    assert {row["seen"] for row in report["sources"]} == {None}


def _made(store: Store) -> Manifest:
    return store.read_manifest(local_name("my-model:Q4_0"))


def _other(store: Store) -> Path:
    return store.manifest_path(local_name("my-model:Q8_0"))


DAMAGE: dict[str, Callable[[Store], object]] = {
    "a blob is gone": lambda store: store.blob_path(_made(store).layers[0].blob.digest).unlink(),
    "a blob is short": lambda store: os.truncate(store.blob_path(_made(store).layers[0].blob.digest), 100),
    "the config is gone": lambda store: store.blob_path(_made(store).config.blob.digest).unlink(),
    "a name is gone": lambda store: _other(store).unlink(),
    "a name is damaged": lambda store: _other(store).write_text("{"),
    "a tag names another": lambda store: _other(store).write_bytes(_made(store).to_bytes()),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("what", DAMAGE)
def test_what_the_target_holds_counts(what: str, publish: Publish, tmp_path: Path) -> None:
    """If anything of the publication is missing from the store, or a tag names something else, it is made again."""
    publish()
    store = Store(tmp_path / "registry")
    DAMAGE[what](store)
    assert publish()["state"] == "published"
    assert all(found.ok for entry in store.list() for found in store.verify(entry.name))


@pytest.fixture(params=["registry", "folder"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A target that is not the local store: a registry on the network, and a folder for any web server."""
    if request.param == "folder":
        yield f"static:{tmp_path / 'elsewhere'}"
        return
    monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", "t" * 20)
    with BackgroundServer(Store(tmp_path / "elsewhere"), settings=Settings(token="t" * 20)) as server:
        yield f"http://{server.registry}"


@pytest.mark.usefixtures("settled")
def test_what_another_target_holds_counts(publish: Publish, elsewhere: str, tmp_path: Path) -> None:
    """A registry and a folder are asked as well: unchanged while all is there, made again when a blob is gone."""
    assert [publish("--to", elsewhere)["state"] for _ in range(2)] == ["published", "unchanged"]
    gguf = max((path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    gguf.unlink()
    assert [publish("--to", elsewhere)["state"] for _ in range(2)] == ["published", "unchanged"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [None, "{", '{"files": []}'], ids=["gone", "no JSON", "another form"])
def test_without_the_report_nothing_is_known(damage: str | None, publish: Publish) -> None:
    """A report that is gone or damaged is no error: the work is done again."""
    path = Path(publish()["path"])
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    assert publish()["state"] == "published"


def test_a_gguf_counts_by_its_content(demo: Path, tmp_path: Path, publish: Publish) -> None:
    """A GGUF is published once; with another byte in it, again."""
    assert publish
    gguf = tmp_path / "x.gguf"
    run = CliRunner().invoke
    assert run(main, ["convert", str(demo), "-o", str(gguf)]).exit_code == 0

    def state() -> str:
        done = run(main, ["publish", str(gguf), "--proof", "none", "--json"])
        assert done.exit_code == 0, done.output
        found: str = json.loads(done.stdout)["state"]
        return found

    assert [state(), state()] == ["published", "unchanged"]
    _spoil(gguf)
    assert [state(), state()] == ["published", "unchanged"]
