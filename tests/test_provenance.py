"""Digests of source files: right, cheap for the Hugging Face cache, and stopped when nobody wants them any more."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import threading
from pathlib import Path

import pytest

from pipeline import provenance
from pipeline.errors import InputError
from pipeline.provenance import SourceFile, SourceHashes, _begun, files_of, hashing_ahead


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


def test_what_was_begun_ahead_is_gone_on_with(demo: Path, tmp_path: Path) -> None:
    """A hash that began before anybody asked is the one that they get, and is forgotten at the end."""
    weights = demo / "model.safetensors"
    (tmp_path / "link").symlink_to(demo)
    with hashing_ahead(str(tmp_path / "link")):
        assert list(_begun) == [weights]
        (ahead,) = _begun[weights].result()
        with SourceHashes(demo, files_of([demo], [weights])) as hashes:
            assert any(one is ahead for one in hashes.result())
    assert ahead.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not _begun


def test_what_changes_after_it_was_hashed_ahead_is_hashed_again(demo: Path, tmp_path: Path) -> None:
    """The digest is that of the file as it is when it is asked for."""
    weights = tmp_path / "model.safetensors"
    shutil.copy(demo / "config.json", tmp_path)
    shutil.copy(demo / "model.safetensors", tmp_path)
    with hashing_ahead(str(tmp_path)):
        _begun[weights].result()
        weights.write_bytes(b"changed")
        with SourceHashes(tmp_path, [weights]) as hashes:
            assert hashes.result()[0].sha256 == hashlib.sha256(b"changed").hexdigest()


@pytest.mark.parametrize("model", ["org/name", "", "~nobody-of-this-name/x", "a\0b", "x" * 5000, "."])
def test_what_is_no_checkpoint_folder_is_not_hashed_ahead(model: str) -> None:
    """Names of repositories and names of nothing are left to those who say what is wrong with them."""
    with hashing_ahead(model):
        assert not _begun


def test_the_first_of_several_files_is_hashed_ahead(tmp_path: Path) -> None:
    """Of shards the first; a single file is preferred to them, as where checkpoints are read."""
    for name in ("config.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    with hashing_ahead(str(tmp_path)):
        assert [path.name for path in _begun] == ["model-00001-of-00002.safetensors"]
    (tmp_path / "model.safetensors").touch()
    with hashing_ahead(str(tmp_path)):
        assert [path.name for path in _begun] == ["model.safetensors"]


def test_a_large_file_is_hashed_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is the content's, whatever its name is; where there is no such process, this one does it."""
    path = tmp_path / "-x\udce9 .safetensors"
    path.write_bytes(os.urandom(300_000))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance._sha256_apart(path, None) == expected
    monkeypatch.setattr(provenance, "_LARGE", 0)
    assert provenance.describe(tmp_path, path).sha256 == expected
    monkeypatch.setattr(provenance, "_HASHER", tmp_path / "missing.py")
    assert provenance._sha256_apart(path, None) == ""
    assert provenance.describe(tmp_path, path).sha256 == expected


def test_the_process_that_hashes_ends_when_nobody_wants_to_know(tmp_path: Path) -> None:
    """Leaving the context stops it, in the midst of a file of a terabyte."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with SourceHashes(tmp_path, [path]) as hashes:
        children: list[str] = []
        while not children:
            children = [
                pid
                for thread in Path("/proc/self/task").iterdir()
                for pid in (thread / "children").read_text().split()
                if b"_hasher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
        watched = os.pidfd_open(int(children[0]))
    assert select.select([watched], [], [], 60)[0]
    os.close(watched)
    hashes._thread.join(60)
    assert not hashes._thread.is_alive()


def test_the_process_that_hashes_ends_with_its_parent(tmp_path: Path) -> None:
    """Where a parent was killed nothing goes on."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    stop = threading.Event()
    reader, writer = os.pipe()
    if (parent := os.fork()) == 0:  # stands for the program: it starts the process, says which, and is killed
        child = os.posix_spawn(
            provenance.sys.executable,
            [provenance.sys.executable, "-I", "-S", str(provenance._HASHER), str(path), str(os.getpid())],
            os.environ,
        )
        os.write(writer, b"%d\n" % child)
        stop.wait()
    with os.fdopen(reader) as said:
        watched = os.pidfd_open(int(said.readline()))
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    os.close(writer)
    assert select.select([watched], [], [], 60)[0]
    os.close(watched)
