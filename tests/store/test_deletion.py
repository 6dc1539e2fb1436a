"""Taking single things out of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import FormatError, UsageError
from pipeline.store import Manifest, Name, Store, remove_blob, untag
from pipeline.store.manifest import CONFIG, MODEL, OCI_MANIFEST
from pipeline.types import Layer

ONE, TWO = Name.parse("me/model:one"), Name.parse("me/model:two")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one model under two tags."""
    store = Store(tmp_path / "store")
    manifest = Manifest(Layer(CONFIG, store.add_bytes(b"{}\n")), (Layer(MODEL, store.add_bytes(b"weights")),))
    store.write_manifests([(ONE, manifest), (TWO, manifest)])
    return store


def test_untag_leaves_the_blobs(store: Store) -> None:
    """The names go, those that are there; the blobs stay for `gc`, the folders go with the last name."""
    blobs = sorted(store.blobs_dir.iterdir())
    untag(store, [ONE, Name.parse("me/none:x")])
    assert [entry.name for entry in store.list()] == [TWO]
    untag(store, [TWO])
    assert store.list() == ()
    assert not (store.manifests_dir / ONE.host).exists()
    assert sorted(store.blobs_dir.iterdir()) == blobs
    assert {one.path for one in store.gc(older_than=-1)} == set(blobs)


def test_a_blob_that_is_needed_stays(store: Store) -> None:
    """Half a model is never made: its blobs can be removed when no manifest names them any more."""
    digest = store.read_manifest(ONE).layers[0].blob.digest
    with pytest.raises(UsageError, match="needs this blob"):
        remove_blob(store, digest)
    untag(store, [ONE])
    with pytest.raises(UsageError):
        remove_blob(store, digest)
    untag(store, [TWO])
    assert remove_blob(store, digest)
    assert not remove_blob(store, digest)
    with pytest.raises(FormatError):
        remove_blob(store, "../x")


def test_a_manifest_is_kept_byte_for_byte(store: Store) -> None:
    """What another client encoded is stored as it is, and read; what is no manifest is refused."""
    data = b" " + store.manifest_bytes(ONE) + b"\n"
    store.write_manifest_bytes(ONE, data)
    assert store.manifest_bytes(ONE) == data
    with pytest.raises(FormatError):
        store.write_manifest_bytes(TWO, b"{}")


def test_the_type_of_a_manifest(store: Store) -> None:
    """It is Docker's or OCI's; one without a type is OCI's, as only OCI allows that."""
    data = store.manifest_bytes(ONE)
    docker = b"application/vnd.docker.distribution.manifest.v2+json"
    assert Manifest.from_bytes(data).media_type == docker.decode()
    assert Manifest.from_bytes(data.replace(docker, OCI_MANIFEST.encode())).media_type == OCI_MANIFEST
    assert Manifest.from_bytes(data.replace(b'"mediaType":"' + docker + b'",', b"", 1)).media_type == OCI_MANIFEST
    read = Manifest.from_bytes(data.replace(docker, OCI_MANIFEST.encode()))
    assert read.to_bytes() == data.replace(docker, OCI_MANIFEST.encode())
