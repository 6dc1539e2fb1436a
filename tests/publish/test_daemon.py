"""The target `ollama` through the API of a real daemon, whose store is not the one that we could write to."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipeline import flow
from pipeline.errors import AccessError, FormatError, ProofError
from pipeline.job import Job
from pipeline.preview import describe_publication
from pipeline.publish import Prompt, Published, Release, ReleaseEntry, open_target
from pipeline.publish._daemon_target import DaemonTarget
from pipeline.publish.ollama import OllamaTarget
from pipeline.store import hash_file
from pipeline.types import Blob

pytestmark = pytest.mark.ollama

NAME = "localhost:11500/library/demo"
MakeEntry = Callable[..., ReleaseEntry]


@pytest.fixture(autouse=True)
def _elsewhere(ollama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _folders: None) -> None:
    """The daemon answers, and its store is not where OLLAMA_MODELS points for us."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.host)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "not the daemon's"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(entry: MakeEntry, tmp_path: Path) -> Callable[..., ReleaseEntry]:
    """Make the entry of a GGUF that Ollama takes; it reads no weights."""

    def make(tags: tuple[str, ...] = ("Q4_K_M", "latest"), seed: int = 0) -> ReleaseEntry:
        path = tmp_path / f"{tags[0]}-{seed}.gguf"
        writer = gguf.GGUFWriter(path, "qwen2")
        writer.add_block_count(1)
        writer.add_tensor("token_embd.weight", np.full((4, 32), seed, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return entry(path, tags, path.read_bytes())

    return make


@pytest.fixture
def publish(silent_log: Any) -> Callable[..., Published]:
    """Publish some entries as library/demo through the daemon."""

    def run(*entries: ReleaseEntry) -> Published:
        with open_target("ollama") as target:
            assert isinstance(target, DaemonTarget)
            return target.publish(Release("library", "demo", entries), silent_log)

    return run


def _names(ollama: Any) -> dict[str, str]:
    return {model["name"]: model["digest"] for model in ollama.get("/api/tags")["models"]}


def test_everything_arrives(
    ollama: Any, publish: Callable[..., Published], small: Callable[..., ReleaseEntry], tmp_path: Path
) -> None:
    """Each tag is there with the very GGUF and every text, all checks say so, and no other name is left."""
    first, second = small(), small(("Q8_0",), 1)
    second = replace(second, template="{{ .Prompt }}", renderer="cohere", parser="passthrough", requires="0.34.0")
    published = publish(first, second)
    assert {str(name): digest.removeprefix("sha256:") for name, digest in zip(
        published.names, published.digests, strict=True
    )} == _names(ollama)  # fmt: skip
    assert {check.name: check.state for check in published.checks} == dict.fromkeys(
        ("Q4_K_M layers", "latest layers", "Q8_0 layers"), "proven"
    )
    blob = ollama.models / "blobs" / first.gguf_blob.digest.replace(":", "-")
    assert blob.read_bytes() == first.gguf.read_bytes()
    shown = ollama.post("/api/show", model=f"{NAME}:Q8_0")
    assert (shown["system"], shown["license"], shown["requires"]) == ("Be <brief> & kind.", "MIT\nApache-2.0", "0.34.0")
    assert [message["content"] for message in shown["messages"]] == ["hé", "<b>"]
    assert published.commands == (f"ollama run {NAME}:Q4_K_M", f"ollama run {NAME}:Q8_0")
    with open_target("ollama") as target:
        found = target.published("library", "demo", ["Q8_0", "latest", "none"])
    assert {tag: blobs[0].digest for tag, blobs in found.items()} == {
        "Q8_0": second.gguf_blob.digest, "latest": first.gguf_blob.digest,
    }  # fmt: skip
    assert not (tmp_path / "not the daemon's" / "manifests").exists()


def test_nothing_is_visible_of_half_a_release(
    ollama: Any, publish: Callable[..., Published], small: Callable[..., ReleaseEntry]
) -> None:
    """Where one of two files is refused, spoilt or prompts wrongly, the old version stays and nothing else is there."""
    publish(small())
    before = _names(ollama)
    no_gguf = small(("Q8_0",), 2)
    no_gguf.gguf.write_bytes(b"no GGUF at all")
    blob = Blob(f"sha256:{hashlib.sha256(b'no GGUF at all').hexdigest()}", 14)
    with pytest.raises(AccessError, match="Ollama"):
        publish(small(seed=1), replace(no_gguf, gguf_blob=blob))
    spoilt = small(("Q8_0",), 3)
    spoilt.gguf.write_bytes(spoilt.gguf.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError):
        publish(small(seed=1), spoilt)
    assert _names(ollama) == before
    publish(small(seed=1))
    assert _names(ollama).keys() == before.keys()
    assert _names(ollama) != before


def test_a_failure_while_naming_puts_everything_back(
    ollama: Any, small: Callable[..., ReleaseEntry], publish: Callable[..., Published]
) -> None:
    """When a name can not be given, those that were given mean again what they meant before."""
    publish(small())
    before = _names(ollama)
    taken = ollama.models / "manifests/localhost:11500/library/demo/Q8_0"
    (taken / "folder").mkdir(parents=True)
    with pytest.raises(AccessError, match="Ollama refuses"):
        publish(small(seed=1), small(("Q8_0",), 2))
    assert _names(ollama) == before


@pytest.mark.native
def test_a_guessed_template_is_replaced_and_the_prompt_proven(
    ollama: Any, demo: Path, tmp_path: Path, silent_log: Any
) -> None:
    """Ollama takes a template of its own for the demo; ours goes in its place, and prompts are the checkpoint's."""
    silent_log.notes.clear()
    report = flow.package(Job(str(demo), ("Q8_0",), ("ollama",)), silent_log)
    assert any("its template 'chatml'" in note for note in silent_log.notes)
    states = {check.name: check.state for check in report.checks}
    assert states["Q8_0 prompt in Ollama"] == "proven"
    assert "different" not in states.values()
    assert set(_names(ollama)) == {f"{NAME}:Q8_0", f"{NAME}:latest"}
    question = {"role": "user", "content": "What is Q2_K?"}
    answer = ollama.post("/api/chat", model=f"{NAME}:latest", messages=[question])["message"]["content"]
    assert answer.startswith("Q2_K is the smallest K-quant")
    staged = list((tmp_path / "cache").rglob("sha256-*"))
    assert staged == []


@pytest.mark.native
def test_another_prompt_is_not_published(ollama: Any, demo: Path, silent_log: Any, tmp_path: Path) -> None:
    """Where Ollama would send something else than the checkpoint's template renders, no name is given."""
    path = tmp_path / "demo.gguf"
    flow.convert(str(demo), path, "F16", silent_log)
    blob = hash_file(path)
    made = ReleaseEntry(("F16",), path, blob, "qwen2", 1, "F16")
    prompt = Prompt(({"role": "user", "content": "Hi"},), "something else", "")
    with pytest.raises(ProofError, match="another prompt"), open_target("ollama") as target:
        target.publish(Release("library", "demo", (made,), lambda: (prompt,)), silent_log)
    assert _names(ollama) == {}


def test_a_dry_run_writes_nothing(
    ollama: Any, demo: Path, silent_log: Any, publish: Callable[..., Published], small: Callable[..., ReleaseEntry],
    tmp_path: Path,
) -> None:  # fmt: skip
    """A dry run asks the daemon what is there, and leaves nothing anywhere."""
    job = Job(str(demo), ("Q4_K_M",), ("ollama",), name="demo")
    (would,) = describe_publication(job, silent_log)
    assert (would["targets"][0]["replaces"], _names(ollama)) == ([], {})
    assert not (tmp_path / "not the daemon's").exists()
    publish(small())
    (would,) = describe_publication(job, silent_log)
    assert would["targets"][0]["replaces"] == ["Q4_K_M", "latest"]


@pytest.mark.skipif(sys.platform == "darwin", reason="seteuid does not change what a thread may read there")
def test_a_store_that_we_may_not_look_into(
    ollama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The store of another user, in a folder that is closed to us, is left alone: the daemon is asked."""
    closed = tmp_path_factory.mktemp("closed")
    monkeypatch.setenv("OLLAMA_MODELS", str(closed / "ollama" / "models"))
    with open_target("ollama") as target:  # everything is imported now
        assert isinstance(target, DaemonTarget)
    closed.chmod(0)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65534)
        with open_target("ollama") as target:
            assert isinstance(target, DaemonTarget)
        monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
        with pytest.raises(AccessError, match="can not be written"):
            open_target("ollama")
    finally:
        os.seteuid(before)
        closed.chmod(0o700)


def test_its_own_store_is_written_directly(ollama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OLLAMA_MODELS is the daemon's store, nothing goes over the network; another machine's never is."""
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama.models))
    with open_target("ollama") as target:
        assert isinstance(target, OllamaTarget)
    assert list((ollama.models / "blobs").glob("sha256-*")) == []
    monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1:11434")
    with open_target("ollama") as target:
        assert isinstance(target, DaemonTarget)
