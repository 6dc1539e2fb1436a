"""What every publish target must do, run over the table of targets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import FormatError, PipelineError, UsageError
from pipeline.publish import PublishTarget, Release, ReleaseEntry, open_target, targets
from pipeline.store import Store, locks, manifest

MakeEntry = Callable[..., ReleaseEntry]
MakeRelease = Callable[..., Release]


def _quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture(params=sorted(targets()))
def target(request: pytest.FixtureRequest, texts: dict[str, str]) -> PublishTarget:
    """Every target, on an empty folder."""
    return open_target(texts[request.param])


def _blobs(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.blobs_dir.iterdir()}


def test_a_release_becomes_visible(target: PublishTarget, entry: MakeEntry, release: MakeRelease) -> None:
    """All tags of all entries are there, each blob reads back as its digest, and nothing else is left behind."""
    with target, target.staging([4, 5]) as (first, second):
        made = release(entry(first), entry(second, ("Q8_0",), b"GGUF2"))
        published = target.publish(made, _quiet)
    assert [(name.namespace, name.model, name.tag) for name in published.names] == [
        ("library", "demo", "Q4_K_M"),
        ("library", "demo", "latest"),
        ("library", "demo", "Q8_0"),
    ]
    store = target.store
    assert {item.name: item.digest for item in store.list()} == dict(
        zip(published.names, published.digests, strict=True)
    )
    assert all(found.ok for name in published.names for found in store.verify(name))
    named = {layer.blob.digest for name in published.names for layer in store.read_manifest(name).all_layers}
    assert {name.replace("-", ":") for name in _blobs(store)} == named
    assert not list(store.root.glob(".pkg-*"))
    assert any("demo:Q8_0" in command for command in published.commands)


def test_staging_is_where_the_file_stays(target: PublishTarget, entry: MakeEntry, release: MakeRelease) -> None:
    """A GGUF that was written in staging is renamed, not copied; the layers around it keep Ollama's order."""
    with target, target.staging([4]) as (path,):
        made = entry(path)
        inode = path.stat().st_ino
        published = target.publish(release(made), _quiet)
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


def test_any_other_file_is_copied(
    target: PublishTarget, entry: MakeEntry, release: MakeRelease, tmp_path: Path
) -> None:
    """A GGUF that lies elsewhere can be published and stays where it is."""
    made = entry(tmp_path / "model.gguf")
    with target:
        target.publish(release(made), _quiet)
    assert made.gguf.read_bytes() == target.store.blob_path(made.gguf_blob.digest).read_bytes()


def test_publishing_again_changes_nothing(target: PublishTarget, entry: MakeEntry, release: MakeRelease) -> None:
    """The same release twice gives the same digests and no more files."""
    digests, blobs = [], []
    for _ in range(2):
        with target, target.staging([4]) as (path,):
            digests.append(target.publish(release(entry(path)), _quiet).digests)
        blobs.append(_blobs(target.store))
    assert digests[0] == digests[1]
    assert blobs[0] == blobs[1]


def test_a_new_version_replaces_the_old(target: PublishTarget, entry: MakeEntry, release: MakeRelease) -> None:
    """A tag that is published again names the new bytes."""
    for data in (b"GGUF", b"GGUF, better"):
        with target, target.staging([len(data)]) as (path,):
            made = entry(path, data=data)
            published = target.publish(release(made), _quiet)
    assert len(target.store.list()) == 2
    assert target.store.read_manifest(published.names[0]).layers[0].blob == made.gguf_blob


def test_an_error_while_writing_leaves_nothing(target: PublishTarget) -> None:
    """Files in staging are gone when the work stops."""

    def stop() -> None:
        with target, target.staging([4, 4]) as paths:
            for path in paths:
                path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert _blobs(target.store) == {}


def test_a_second_entry_that_fails_hides_the_first(
    target: PublishTarget, entry: MakeEntry, release: MakeRelease
) -> None:
    """When one of two entries is not what its digest says, none is visible and no temporary file is left."""

    def publish() -> None:
        with target, target.staging([4, 5]) as (first, second):
            good, bad = entry(first), entry(second, ("Q8_0",), b"GGUF2")
            second.write_bytes(b"short")
            second.write_bytes(b"much longer")
            target.publish(release(good, bad), _quiet)

    with pytest.raises(FormatError, match="another size"):
        publish()
    assert target.store.list() == ()
    assert not [name for name in _blobs(target.store) if "pkg" in name]


def test_a_copy_that_is_not_its_digest_is_refused(
    target: PublishTarget, entry: MakeEntry, release: MakeRelease, tmp_path: Path
) -> None:
    """A file from elsewhere is hashed on its way in."""
    made = entry(tmp_path / "model.gguf")
    made.gguf.write_bytes(b"GGUG")
    with pytest.raises(FormatError), target:
        target.publish(release(made), _quiet)
    assert target.store.list() == ()


def test_publishing_waits_for_a_removal(target: PublishTarget, entry: MakeEntry, release: MakeRelease) -> None:
    """While models are removed from the store, nothing is written: a blob found there might be gone a moment later."""
    waits = threading.Event()
    with target, target.staging([4]) as (path,):
        made = release(entry(path))
        with locks.exclusive(target.store.root):
            thread = threading.Thread(target=target.publish, args=(made, lambda _: waits.set()))
            thread.start()
            assert waits.wait(20)
            assert target.store.list() == ()
        thread.join()
    assert len(target.store.list()) == 2


@pytest.mark.parametrize(
    "tags", [("Q4_K_M", "Q4_K_M"), ("latest", "Latest"), ("cloud",), ("-x",), ("a/b",)], ids="-".join
)
def test_bad_tags_are_refused_before_anything_is_written(
    target: PublishTarget, entry: MakeEntry, release: MakeRelease, tmp_path: Path, tags: tuple[str, ...]
) -> None:
    """A name that is invalid or taken twice is a usage error, and the store stays empty."""
    made = replace(entry(tmp_path / "model.gguf"), tags=tags)
    with pytest.raises(UsageError), target:
        target.publish(release(made), _quiet)
    assert not target.store.root.exists()


def test_every_target_has_its_test(texts: dict[str, str]) -> None:
    """The table of tests is the table of targets, and each text is accepted by its own target alone."""
    table = targets()
    assert set(texts) == set(table)
    for name, text in texts.items():
        assert [kind.name for kind in table.values() if kind.accepts(text)] == [name]
        assert table[name].usage.startswith(name.split(":")[0])


@pytest.mark.parametrize("text", ["", "locale", "ftp://x", "LOCAL"])
def test_an_unknown_target_lists_the_known(text: str) -> None:
    """What nobody accepts is a usage error that names what there is."""
    with pytest.raises(UsageError, match="local, ollama"):
        open_target(text)


@pytest.mark.parametrize("kind", ["local", "ollama"])
def test_a_store_that_cannot_be_written_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Before any work, a store in the way of a file is refused with a next step."""
    (tmp_path / kind).write_text("a file")
    with pytest.raises(PipelineError, match="hint:") as error:
        open_target(kind)
    assert error.value.exit_code == 4
