"""The proof `quick`: what it proves, what it says it did not check, and that a damaged publication stops it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow, prove
from pipeline.errors import ProofError
from pipeline.store import Name, Store, local_name
from pipeline.store.manifest import MODEL
from pipeline.types import Check

TOKENS = {"bos_token": "", "eos_token": "<|im_end|>"}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_log: Any) -> tuple[Store, list[Name]]:
    """The demo in a store of its own, unproven."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    flow.package(flow.Job("demo", ("Q4_0",), proof="none"), silent_log)
    return Store(tmp_path / "registry"), [local_name("demo:Q4_0")]


def _run(store: Store, names: Sequence[Name], template: str | None) -> dict[str, Check]:
    checks = prove.run("quick", store, names, chat_template=template, tokens=TOKENS, log=lambda _line: None)
    return {check.name: check for check in checks}


@pytest.mark.native
def test_a_good_publication_is_proven(published: tuple[Store, list[Name]], demo: Path, llama: Any) -> None:
    """Blobs, file, load and prompt are proven, and the runtime is named."""
    checks = _run(*published, (demo / "chat_template.jinja").read_text(encoding="utf-8"))
    assert {name: check.state for name, check in checks.items()} == dict.fromkeys(
        ("Q4_0 blobs", "Q4_0 file", "Q4_0 load", "prompt"), "proven"
    )
    assert llama.version in checks["Q4_0 load"].detail


@pytest.mark.native
def test_another_template_is_a_difference(published: tuple[Store, list[Name]], llama: Any) -> None:
    """If the file's template renders otherwise than the checkpoint's, the prompt is different."""
    assert llama
    check = _run(*published, "{% for m in messages %}{{ m.content }}{% endfor %}")["prompt"]
    assert check.state == "different"
    assert "in ['Hello!'], at character 0: expected 'Hello!', llama.cpp renders '<|im_start|>user" in check.detail


def test_a_flipped_bit_is_a_difference(published: tuple[Store, list[Name]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that is not what its digest says stops the publication."""
    store, names = published
    monkeypatch.setenv("GGUF_PIPELINE_LLAMA", "")
    layer = next(one for one in store.read_manifest(names[0]).layers if one.media_type == MODEL)
    path = store.blob_path(layer.blob.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    checks = prove.run("quick", store, names, chat_template=None, tokens=TOKENS, log=lambda _line: None)
    assert {check.name: check.state for check in checks}["Q4_0 blobs"] == "different"
    with pytest.raises(ProofError, match="Q4_0 blobs"):
        prove.refuse_differences(names[0], checks)


def test_no_proof_says_so(published: tuple[Store, list[Name]]) -> None:
    """Without a proof the report has the command that would give one."""
    store, names = published
    (check,) = prove.run("none", store, names, chat_template=None, tokens=TOKENS, log=lambda _line: None)
    assert check.state == "not checked"
    assert check.command is not None
    prove.refuse_differences(names[0], (check,))
