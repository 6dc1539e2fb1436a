"""What the targets share that are stores on this disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError, PipelineError
from pipeline.publish import Release, ReleaseEntry, open_target
from pipeline.publish._read_back import read_back
from pipeline.publish._store_target import StoreReader, StoreTarget
from pipeline.store import locks, manifest

MakeEntry = Callable[..., ReleaseEntry]
MakeRelease = Callable[..., Release]


@pytest.fixture(params=["local", "ollama"])
def target(request: pytest.FixtureRequest) -> StoreTarget:
    """Both, on an empty folder."""
    opened = open_target(request.param)
    assert isinstance(opened, StoreTarget)
    return opened


def test_staging_is_where_the_file_stays(
    target: StoreTarget, entry: MakeEntry, release: MakeRelease, silent_log: Any
) -> None:
    """A GGUF that was written in staging is renamed, not copied; the layers around it keep Ollama's order."""
    with target, target.staging([4]) as (path,):
        made = entry(path)
        inode = path.stat().st_ino
        published = target.publish(release(made), silent_log)
    found = target.store.read_manifest(published.names[0])
    assert target.store.blob_path(made.gguf_blob.digest).stat().st_ino == inode
    assert [layer.media_type for layer in found.layers] == [
        manifest.MODEL,
        manifest.SYSTEM,
        manifest.LICENSE,
        manifest.LICENSE,
        manifest.PARAMS,
        manifest.MESSAGES,
    ]
    assert found.layers[0].blob == made.gguf_blob


def test_publishing_waits_for_a_removal(
    target: StoreTarget, entry: MakeEntry, release: MakeRelease, silent_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While models are removed from the store, nothing is written: a blob found there might be gone a moment later."""
    waits = threading.Event()
    with target, target.staging([4]) as (path,):
        made = release(entry(path))
        with locks.exclusive(target.store.root):
            monkeypatch.setattr(silent_log, "stage", lambda _: waits.set(), raising=True)
            thread = threading.Thread(target=target.publish, args=(made, silent_log))
            thread.start()
            assert waits.wait(20)
            assert target.store.list() == ()
        thread.join()
    assert len(target.store.list()) == 2


def test_a_file_of_another_size_is_refused(
    target: StoreTarget, entry: MakeEntry, release: MakeRelease, silent_log: Any
) -> None:
    """A file in staging that changed after it was hashed is not named, and nothing is left of the release."""

    def publish() -> None:
        with target, target.staging([4, 5]) as (first, second):
            good, bad = entry(first), entry(second, ("Q8_0",), b"GGUF2")
            second.write_bytes(b"much longer")
            target.publish(release(good, bad), silent_log)

    with pytest.raises(FormatError, match="another size"):
        publish()
    assert target.store.list() == ()
    assert not [path for path in target.store.blobs_dir.iterdir() if "pkg" in path.name]


def test_publishing_again_adds_no_file(
    target: StoreTarget, entry: MakeEntry, release: MakeRelease, silent_log: Any
) -> None:
    """The same release twice leaves the same blobs."""
    blobs = []
    for _ in range(2):
        with target, target.staging([4]) as (path,):
            target.publish(release(entry(path)), silent_log)
        blobs.append({path.name: path.read_bytes() for path in target.store.blobs_dir.iterdir()})
    assert blobs[0] == blobs[1]
    assert not list(target.store.root.glob(".pkg-*"))


def test_a_blob_that_changed_on_the_disk_is_found(
    target: StoreTarget, entry: MakeEntry, release: MakeRelease, silent_log: Any
) -> None:
    """Reading back hashes the small blobs, looks at the size of the GGUF, and compares the manifest."""
    with target, target.staging([4]) as (path,):
        made = release(entry(path))
        published = target.publish(made, silent_log)
    name = published.names[0]
    manifests = [(name, target.store.read_manifest(name))]

    def states() -> list[str]:
        return [check.state for check in read_back(StoreReader(target.store), manifests)]

    assert states() == ["proven"]
    system = next(one for one in manifests[0][1].layers if one.media_type == manifest.SYSTEM)
    for digest, size in ((system.blob.digest, system.blob.size), (made.entries[0].gguf_blob.digest, 3)):
        path = target.store.blob_path(digest)
        good = path.read_bytes()
        path.write_bytes(b"x" * size)
        assert states() == ["different"]
        path.write_bytes(good)
    target.store.manifest_path(name).write_bytes(target.store.manifest_bytes(name) + b"\n")
    assert states() == ["different"]


@pytest.mark.parametrize("kind", ["local", "ollama"])
def test_a_store_that_cannot_be_written_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Before any work, a store in the way of a file is refused with a next step."""
    (tmp_path / kind).write_text("a file")
    with pytest.raises(PipelineError, match="hint:") as error:
        open_target(kind)
    assert error.value.exit_code == 4
