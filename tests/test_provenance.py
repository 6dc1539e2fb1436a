"""Digests of source files: right, cheap for the Hugging Face cache, and stopped when nobody wants them any more."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.provenance import SourceFile, SourceHashes, files_of


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A snapshot as the Hugging Face cache has it: links to blobs, large ones named by their sha256."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("c" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob, data in (("model.safetensors", "a" * 64, b"weights"), ("config.json", "b" * 40, b"{}")):
        (blobs / blob).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    return snapshot


def test_every_file_is_named_with_its_digest(demo: Path) -> None:
    """Weights, configuration, tokenizer and template, each with its size and sha256; other files are left out."""
    with SourceHashes(demo, files_of([demo], [demo / "model.safetensors"])) as hashes:
        found = hashes.result()
    assert [one.name for one in found] == sorted(one.name for one in found)
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {one.name for one in found}
    assert not {"README.md", "train.py", "qa.jsonl"} & {one.name for one in found}
    for one in found:
        data = (demo / one.name).read_bytes()
        assert one == SourceFile(one.name, len(data), hashlib.sha256(data).hexdigest(), "content")


def test_the_cache_is_believed_where_it_names_a_sha256(cached: Path) -> None:
    """A blob of the cache that is named by a sha256 is not read; one named by a git id is."""
    with SourceHashes(cached, files_of([cached], [cached / "model.safetensors"])) as hashes:
        config, weights = hashes.result()
    assert (config.name, config.by, config.sha256) == ("config.json", "content", hashlib.sha256(b"{}").hexdigest())
    assert (weights.name, weights.by, weights.sha256, weights.size) == ("model.safetensors", "cache", "a" * 64, 7)


def test_a_file_waits_until_it_is_ready(cached: Path) -> None:
    """Files that are still on their way are asked for first."""
    asked: list[Path] = []
    with SourceHashes(cached, [cached / "config.json"], asked.append) as hashes:
        hashes.result()
    assert asked == [cached / "config.json"]


def test_a_missing_file_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    """The thread's error reaches the caller as one of ours."""
    with (
        SourceHashes(tmp_path, [tmp_path / "gone.safetensors"]) as hashes,
        pytest.raises(InputError, match=r"gone\.safetensors"),
    ):
        hashes.result()
