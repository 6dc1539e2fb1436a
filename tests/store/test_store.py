"""Models by name: visible when whole, listed, removed, swept, read back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import AccessError, FormatError, UsageError
from pipeline.store import Manifest, Name, Store, Verified
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.types import Blob, Layer

DEMO, OTHER = Name.parse("demo:Q4_K_M"), Name.parse("other")
OLD = 1_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


@pytest.fixture
def model(store: Store) -> Callable[[bytes], Manifest]:
    """Put a model's blobs into the store; all models share one config."""

    def make(data: bytes) -> Manifest:
        config = Layer(CONFIG, store.add_bytes(b"{}\n"))
        return Manifest(config, (Layer(MODEL, store.add_bytes(data)),))

    return make


Model = Callable[[bytes], Manifest]


def _temporaries(store: Store) -> list[Path]:
    names = [*store.root.glob(".pkg-*"), *store.blobs_dir.glob("*pkg*")]
    return [*names, *(path for path in store.manifests_dir.rglob("*") if path.name.startswith("."))]


def test_write_and_read(store: Store, model: Model) -> None:
    """A manifest lies under its name with exactly its own bytes, readable by all."""
    manifest = model(b"weights")
    digest = store.write_manifest(DEMO, manifest)
    path = store.root / "manifests/localhost:11500/library/demo/Q4_K_M"
    assert path.read_bytes() == manifest.to_bytes()
    assert digest == f"sha256:{hashlib.sha256(manifest.to_bytes()).hexdigest()}"
    assert path.stat().st_mode & 0o777 == 0o644
    assert store.read_manifest(DEMO) == manifest
    assert _temporaries(store) == []


def test_an_unknown_name_offers_the_nearest(store: Store, model: Model) -> None:
    """A typing error is answered with what is there."""
    store.write_manifest(DEMO, model(b"weights"))
    with pytest.raises(UsageError, match="did you mean localhost:11500/library/demo:Q4_K_M"):
        store.read_manifest(Name.parse("demo:Q4_K_S"))
    with pytest.raises(UsageError, match="no such model"):
        store.read_manifest(Name.parse("demo/q4_k_m:x"))


@pytest.mark.parametrize("size", [3, 7])
def test_a_model_without_its_blobs_stays_invisible(store: Store, size: int) -> None:
    """A manifest that names a missing or short blob is not written."""
    store.add_bytes(b"abc")
    layer = Layer(MODEL, Blob(f"sha256:{hashlib.sha256(b'abc' if size == 7 else b'x').hexdigest()}", size))
    with pytest.raises(AccessError, match=layer.blob.digest):
        store.write_manifest(DEMO, Manifest(layer, (layer,)))
    assert store.list() == ()
    assert not store.manifests_dir.exists()


class _PrunedStore(Store):
    """A store in which somebody removes *lost* at the moment when the manifests are in place."""

    lost: Blob

    def _place(self, temp: Path, final: Path) -> None:
        super()._place(temp, final)
        self.blob_path(self.lost.digest).unlink(missing_ok=True)


@pytest.mark.parametrize("before", [False, True])
def test_a_blob_lost_at_the_last_moment(store: Store, model: Model, before: bool) -> None:
    """When a blob vanishes under a new manifest, all names are as before: absent, or the old model."""
    old, new = model(b"old"), model(b"new")
    if before:
        store.write_manifest(OTHER, old)
    pruned = _PrunedStore(store.root)
    pruned.lost = new.layers[0].blob
    with pytest.raises(AccessError, match="not in the store"):
        pruned.write_manifests([(DEMO, new), (OTHER, new)])
    assert [entry.name for entry in store.list()] == ([OTHER] if before else [])
    if before:
        assert store.read_manifest(OTHER) == old
    else:
        assert list(store.manifests_dir.iterdir()) == []
    assert _temporaries(store) == []


def test_all_names_or_none(store: Store, model: Model) -> None:
    """When the second of two names can not be written, the first does not appear."""
    blocked = store.manifest_path(OTHER)
    blocked.parent.parent.mkdir(parents=True)
    blocked.parent.write_text("a file where a folder must be")
    with pytest.raises(AccessError):
        store.write_manifests([(DEMO, model(b"weights")), (OTHER, model(b"weights"))])
    assert store.list() == ()
    assert _temporaries(store) == []


class _EmptiedStore(Store):
    """A store whose new folders are removed again by somebody, the first few times."""

    times = 3

    def _make_folder(self, folder: Path) -> None:
        super()._make_folder(folder)
        if self.times:
            self.times -= 1
            folder.rmdir()


def test_a_folder_that_is_pruned_before_it_is_used(store: Store, model: Model) -> None:
    """A folder that goes away before the manifest is in it is made again."""
    emptied = _EmptiedStore(store.root)
    emptied.write_manifest(DEMO, model(b"weights"))
    assert emptied.times == 0
    assert [entry.name for entry in store.list()] == [DEMO]


def test_writing_while_empty_folders_are_pruned(store: Store, model: Model) -> None:
    """An Ollama that removes empty folders at its start does not make a write fail."""
    manifest, done = model(b"weights"), threading.Event()

    def prune() -> None:
        while not done.is_set():
            for path, _, _ in os.walk(store.manifests_dir, topdown=False):
                try:
                    Path(path).rmdir()
                except OSError:
                    continue

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for number in range(10):
            store.write_manifest(Name.parse(f"model-{number}"), manifest)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert len(store.list()) == 10


def test_no_second_spelling(store: Store, model: Model) -> None:
    """A tag that differs from one that is there in case alone is refused; the same tag may be replaced."""
    store.write_manifest(DEMO, model(b"weights"))
    with pytest.raises(UsageError, match=r"(?s)another spelling.*gguf-pipeline rm localhost:11500/library/demo:Q4_K_M"):
        store.write_manifest(replace(DEMO, tag="q4_k_m"), model(b"weights"))
    store.write_manifest(DEMO, model(b"other"))
    assert len(store.list()) == 1


def test_list(store: Store, model: Model) -> None:
    """Models are listed newest first, with the id and size that `ollama list` shows."""
    assert store.list() == ()
    for name, time in ((DEMO, OLD), (OTHER, OLD + 1)):
        store.write_manifest(name, model(b"weights"))
        os.utime(store.manifest_path(name), (time, time))
    first, second = store.list()
    assert (first.name, second.name) == (OTHER, DEMO)
    assert second.size == len(b"weights") + len(b"{}\n")
    assert second.modified == datetime.fromtimestamp(OLD, UTC)
    assert second.id == hashlib.sha256(model(b"weights").to_bytes()).hexdigest()[:12]
    assert [layer.media_type for layer in second.layers] == [MODEL]


def test_bad_manifests_are_reported_and_hide_nothing(store: Store, model: Model) -> None:
    """A stray file or broken manifest is a problem with a reason; the good models are listed all the same."""
    store.write_manifest(DEMO, model(b"weights"))
    folder = store.manifest_path(DEMO).parent
    (folder / ".q4.tmp").write_bytes(model(b"weights").to_bytes())
    (folder / "broken").write_bytes(b"{")
    (folder / "empty").write_bytes(b"")
    assert [entry.name for entry in store.list()] == [DEMO]
    problems = {problem.path.name: problem.reason for problem in store.problems()}
    assert set(problems) == {".q4.tmp", "broken", "empty"}
    assert "not JSON" in problems["broken"]


def test_foreign_models_are_listed(store: Store, model: Model) -> None:
    """Models of other hosts with upper-case names are part of an Ollama store."""
    name = Name("hf.co", "Qwen", "Qwen2.5-GGUF", "Q4_K_M")
    store.write_manifest(name, model(b"weights"))
    assert [entry.name for entry in store.list()] == [name]


def test_remove_keeps_what_others_use(store: Store, model: Model) -> None:
    """Only blobs that no other model names are removed, and empty folders with them."""
    mine, shared = model(b"mine"), model(b"shared")
    both = Manifest(mine.config, (*mine.layers, *shared.layers))
    store.write_manifest(DEMO, both)
    store.write_manifest(OTHER, shared)
    assert store.remove(DEMO) == (mine.layers[0].blob,)
    assert [entry.name for entry in store.list()] == [OTHER]
    assert all(layer.ok for layer in store.verify(OTHER))
    assert not store.manifest_path(DEMO).parent.exists()
    assert len(store.remove(OTHER)) == 2
    assert list(store.blobs_dir.iterdir()) == []
    assert store.manifests_dir.is_dir()


def test_remove_respects_a_bad_manifest(store: Store, model: Model) -> None:
    """A broken manifest that mentions a blob still protects it."""
    store.write_manifest(DEMO, model(b"weights"))
    broken = store.manifest_path(DEMO).with_name("broken")
    broken.write_bytes(model(b"weights").to_bytes()[:-5])
    store.remove(DEMO)
    assert store.has(model(b"weights").layers[0].blob.digest)


def test_several_are_removed_together(store: Store, model: Model) -> None:
    """Blobs that only the removed names share go; if one name is not there, nothing goes; a dry run only tells."""
    shared = model(b"shared")
    store.write_manifests([(DEMO, shared), (OTHER, shared)])
    with pytest.raises(UsageError):
        store.remove(DEMO, Name.parse("never-there"))
    told = store.remove(DEMO, OTHER, dry_run=True)
    assert len(store.list()) == 2
    assert store.remove(DEMO, OTHER) == told
    assert {blob.digest for blob in told} == {layer.blob.digest for layer in shared.all_layers}
    assert list(store.blobs_dir.iterdir()) == []


def test_removals_next_to_publications(store: Store, model: Model) -> None:
    """While models that share a blob are published and removed, and garbage is collected, no name lacks a blob."""
    names = [Name.parse(f"demo:t{i}") for i in range(4)]
    stop = threading.Event()
    bad: list[str] = []

    def collect() -> None:
        while not stop.is_set():
            store.gc(older_than=-1.0)

    def publish(name: Name) -> None:
        for _ in range(15):
            with store.writing():
                mine, shared = model(name.tag.encode()), model(b"shared")
                store.write_manifest(name, Manifest(mine.config, (*mine.layers, *shared.layers)))
            bad.extend(found.found for found in store.verify(name) if not found.ok)
            store.remove(name)

    collector = threading.Thread(target=collect)
    workers = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in (collector, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    collector.join()
    assert bad == []
    assert store.list() == ()


def test_remove_of_a_broken_model(store: Store, model: Model) -> None:
    """A model whose blob is lost can be removed."""
    manifest = model(b"weights")
    store.write_manifest(DEMO, manifest)
    store.blob_path(manifest.layers[0].blob.digest).unlink()
    assert store.remove(DEMO) == (manifest.config.blob,)
    with pytest.raises(UsageError):
        store.remove(DEMO)


def test_verify(store: Store, model: Model) -> None:
    """Every blob is read back: changed bytes, lost files and wrong sizes are found."""
    manifest = model(b"weights")
    store.write_manifest(DEMO, manifest)
    layer, config = manifest.layers[0], manifest.config
    path = store.blob_path(layer.blob.digest)
    assert list(store.verify(DEMO)) == [
        Verified(layer, True, layer.blob.digest),
        Verified(config, True, config.blob.digest),
    ]
    path.write_bytes(b"wEights")
    changed = f"sha256:{hashlib.sha256(b'wEights').hexdigest()}"
    assert next(store.verify(DEMO)) == Verified(layer, False, changed)
    path.write_bytes(b"weights")
    longer = replace(layer, blob=replace(layer.blob, size=9))
    store.manifest_path(DEMO).write_bytes(Manifest(config, (longer,)).to_bytes())
    assert next(store.verify(DEMO)) == Verified(longer, False, "7 bytes")
    path.unlink()
    assert next((found.ok, found.found) for found in store.verify(DEMO)) == (False, "missing")


def test_gc(store: Store, model: Model) -> None:
    """Old files that no model needs go; young ones, used ones and other people's stay."""
    store.write_manifest(DEMO, model(b"used"))
    unused, young = store.add_bytes(b"unused"), store.add_bytes(b"young")
    temp, manifest_temp, part = (
        store.blobs_dir / "sha256-pkg-x",
        store.root / ".pkg-x",
        store.blobs_dir / ".sha256-pkg-x.part",
    )
    theirs = store.blobs_dir / ("sha256-" + "0" * 64 + "-partial")
    for path in (temp, manifest_temp, part, theirs):
        path.write_bytes(b"12345")
    for path in (*store.blobs_dir.iterdir(), manifest_temp):
        os.utime(path, (OLD, OLD))
    os.utime(store.blob_path(young.digest))
    swept = store.gc()
    assert {found.path for found in swept} == {store.blob_path(unused.digest), temp, manifest_temp, part}
    assert sum(found.size for found in swept) == len(b"unused") + 3 * 5
    assert theirs.exists()
    assert all(found.ok for found in store.verify(DEMO))
    assert store.gc() == ()


def test_gc_leaves_what_is_being_written(store: Store) -> None:
    """A file in staging is not swept, however old it looks; after its writer died it is."""
    with store.blob_writer() as path:
        os.utime(path, (OLD, OLD))
        assert store.gc() == ()
        path.rename(path.with_name("sha256-pkg-left-over"))
    assert [found.path.name for found in store.gc()] == ["sha256-pkg-left-over"]


def test_sweep_takes_what_the_dead_left(store: Store, model: Model) -> None:
    """Temporary files go however young they are, unless some process may still write one; models stay."""
    store.sweep()
    assert not store.root.exists()
    store.write_manifest(DEMO, model(b"weights"))
    kept = {path for path in store.root.rglob("*") if path.is_file()}
    left = [store.blobs_dir / "sha256-pkg-x", store.blobs_dir / ".sha256-pkg-x.1-2.part", store.root / ".pkg-x"]
    for path in left:
        path.write_bytes(b"12345")
    with store.blob_writer():
        store.sweep()
        assert all(path.exists() for path in left)
    store.sweep()
    assert {path for path in store.root.rglob("*") if path.is_file()} == kept


def test_gc_refuses_to_guess(store: Store, model: Model) -> None:
    """With a broken manifest it is unknown what is needed: nothing is removed."""
    store.write_manifest(DEMO, model(b"weights"))
    store.manifest_path(DEMO).write_bytes(b"{")
    with pytest.raises(FormatError, match="bad manifest"):
        store.gc(0)
    assert len(list(store.blobs_dir.iterdir())) == 2


def test_gc_of_an_empty_store(store: Store) -> None:
    """A store that does not exist has nothing to sweep."""
    assert store.gc() == ()


_REMOVER = """
import sys
from pathlib import Path
from pipeline.store import Name, Store
Store(Path(sys.argv[1])).remove(Name.parse(sys.argv[2]), waiting=lambda text: print("waits", flush=True))
print("removed", flush=True)
"""


def test_removal_waits_for_a_writer(store: Store, model: Model, repository: Path) -> None:
    """A blob that a writer found in the store is still there when its manifest is written: the removal waits."""
    store.write_manifest(OTHER, model(b"weights"))
    command = [sys.executable, "-c", _REMOVER, str(store.root), str(OTHER)]
    with store.writing():
        manifest = model(b"weights")
        remover = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
        assert remover.stdout is not None
        assert remover.stdout.readline() == "waits\n"
        store.write_manifest(DEMO, manifest)
    with remover:
        assert remover.stdout.readline() == "removed\n"
    assert [entry.name for entry in store.list()] == [DEMO]
    assert all(found.ok for found in store.verify(DEMO))


@pytest.fixture
def foreign(store: Store) -> Store:
    """A store that belongs to another user, for root."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    store.blobs_dir.mkdir(parents=True)
    for folder in (store.root, store.blobs_dir):
        os.chown(folder, 65534, 65534)
    return store


def test_root_gives_manifests_to_the_stores_owner(foreign: Store, model: Model) -> None:
    """Manifests and their folders belong to the daemon's user, so that it can remove them."""
    foreign.write_manifest(DEMO, model(b"weights"))
    made = [foreign.manifests_dir, *foreign.manifests_dir.rglob("*")]
    assert len(made) == 5
    assert {path.stat().st_uid for path in made} == {65534}
