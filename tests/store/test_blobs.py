"""Blobs: whole, hashed, fresh, or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import AccessError, FormatError, ResourceError
from pipeline.store import Store, _disk, hash_file
from pipeline.types import Blob

DATA = bytes(range(256)) * 20_000  # more than one chunk
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
OLD = 1_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file outside the store, old and private."""
    path = tmp_path / "model.gguf"
    path.write_bytes(DATA)
    path.chmod(0o600)
    os.utime(path, (OLD, OLD))
    return path


def _files(store: Store) -> list[str]:
    return sorted(path.name for path in store.blobs_dir.iterdir())


def _assert_committed(store: Store) -> None:
    path = store.blob_path(DIGEST)
    status = path.stat()
    assert path.read_bytes() == DATA
    assert status.st_mode & 0o777 == 0o644
    assert abs(status.st_mtime - time.time()) < 60
    assert _files(store) == [path.name]


def test_the_path_of_a_blob(store: Store) -> None:
    """A digest's colon becomes a hyphen."""
    assert store.blob_path(DIGEST) == store.root / "blobs" / f"sha256-{DIGEST[7:]}"


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "A" * 64, "sha256:../x", "md5:" + "a" * 64, DIGEST + "\n"]
)
def test_a_bad_digest_has_no_path(store: Store, digest: str) -> None:
    """Only a digest leads to a file."""
    with pytest.raises(FormatError):
        store.blob_path(digest)


def test_add_bytes(store: Store) -> None:
    """Bytes become a readable file under their digest, folders 0755."""
    umask = os.umask(0o077)
    try:
        assert store.add_bytes(DATA) == Blob(DIGEST, len(DATA))
    finally:
        os.umask(umask)
    _assert_committed(store)
    assert store.blobs_dir.stat().st_mode & 0o777 == 0o755


@given(st.binary(max_size=64))
def test_bytes_are_found_by_content(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever is added is there, with its size."""
    store = Store(tmp_path_factory.getbasetemp() / "shared-store")
    blob = store.add_bytes(data)
    assert store.blob_path(blob.digest).read_bytes() == data
    assert hash_file(store.blob_path(blob.digest)) == blob
    assert store.has(blob.digest, len(data))
    assert not store.has(blob.digest, len(data) + 1)


def test_adding_again_refreshes_the_time(store: Store) -> None:
    """A blob that is there is not written again, but made new, so that no prune takes it."""
    path = store.blob_path(store.add_bytes(DATA).digest)
    inode = path.stat().st_ino
    os.utime(path, (OLD, OLD))
    store.add_bytes(DATA)
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > OLD


def test_a_truncated_blob_is_replaced(store: Store, source: Path) -> None:
    """A file of the wrong size under the digest's name is not taken for the blob."""
    store.add_bytes(DATA)
    store.blob_path(DIGEST).write_bytes(DATA[:100])
    assert not store.has(DIGEST, len(DATA))
    store.add_file(source, DIGEST)
    _assert_committed(store)


@pytest.mark.parametrize("move", [False, True])
def test_add_file(store: Store, source: Path, move: bool) -> None:
    """A file is copied, or moved, and is then fresh and readable by all."""
    assert store.add_file(source, DIGEST, move) == Blob(DIGEST, len(DATA))
    _assert_committed(store)
    assert source.exists() is not move
    if not move:
        assert (source.stat().st_mtime, source.stat().st_mode & 0o777) == (OLD, 0o600)


@pytest.mark.parametrize("move", [False, True])
def test_add_file_that_is_there(store: Store, source: Path, move: bool) -> None:
    """A blob that is there already is enough; with move the source is gone all the same."""
    store.add_bytes(DATA)
    assert store.add_file(source, DIGEST, move) == Blob(DIGEST, len(DATA))
    assert source.exists() is not move
    _assert_committed(store)


@pytest.mark.parametrize("move", [False, True])
def test_a_wrong_digest_is_refused(store: Store, source: Path, move: bool) -> None:
    """A file that is not what its digest says does not get in, and is not lost."""
    wrong = "sha256:" + "0" * 64
    with pytest.raises(FormatError, match=DIGEST):
        store.add_file(source, wrong, move)
    assert source.read_bytes() == DATA
    assert _files(store) == []


def test_a_move_from_another_file_system(store: Store) -> None:
    """Where a rename is not possible, move copies and then removes."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no second file system here")
    source = memory / f"gguf-pipeline-test-{os.getpid()}"
    source.write_bytes(DATA)
    try:
        store.add_file(source, DIGEST, move=True)
        assert not source.exists()
    finally:
        source.unlink(missing_ok=True)
    _assert_committed(store)


def test_a_writer_in_place(store: Store) -> None:
    """A file written in the store is committed by a rename: the same inode, no copy."""
    with store.blob_writer() as path:
        assert path.parent == store.blobs_dir
        path.write_bytes(DATA)
        os.utime(path, (OLD, OLD))
        inode = path.stat().st_ino
        assert store.commit_file(path, DIGEST) == Blob(DIGEST, len(DATA))
    assert store.blob_path(DIGEST).stat().st_ino == inode
    _assert_committed(store)


def test_a_writers_name_is_one_that_ollama_sweeps(store: Store) -> None:
    """Ollama must neither take a half-written file for a blob nor keep it for ever: only a bad digest is swept."""
    with store.blob_writer() as path:
        assert path.name.startswith("sha256-")
        assert len(path.name) != len("sha256-") + 64


def test_an_abandoned_writer_leaves_nothing(store: Store) -> None:
    """An error while writing removes the file."""
    with pytest.raises(AccessError), store.blob_writer() as path:
        store.add_file(path.with_name("none"), DIGEST)
    assert _files(store) == []


def test_a_store_that_cannot_be(tmp_path: Path, source: Path) -> None:
    """A root that is a file is an access error, not a traceback."""
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    for call in (lambda: store.add_bytes(b"x"), lambda: store.add_file(source, DIGEST)):
        with pytest.raises(AccessError):
            call()


def test_a_missing_source(store: Store, tmp_path: Path) -> None:
    """A file that is not there is named in the error."""
    with pytest.raises(AccessError, match=r"none\.gguf"):
        store.add_file(tmp_path / "none.gguf", DIGEST)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, ResourceError), (errno.EDQUOT, ResourceError), (errno.EACCES, AccessError)]
)
def test_what_the_disk_says_becomes_ours(number: int, error: type[Exception]) -> None:
    """No space is a resource error, no permission an access error, both name the place."""
    with pytest.raises(error, match="/somewhere"), _disk.translated(Path("/somewhere")):
        raise OSError(number, os.strerror(number))


@pytest.fixture
def foreign(store: Store) -> Store:
    """A store that belongs to another user, for root."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    store.blobs_dir.mkdir(parents=True)
    for folder in (store.root, store.blobs_dir):
        os.chown(folder, 65534, 65534)
    return store


def test_root_gives_blobs_to_the_stores_owner(foreign: Store, source: Path) -> None:
    """A daemon that runs as another user owns what root writes for it."""
    foreign.add_bytes(b"x")
    foreign.add_file(source, DIGEST)
    assert {path.stat().st_uid for path in foreign.blobs_dir.iterdir()} == {65534}
