"""Files by content: `blobs/sha256-<hex>`, whole or absent.

Every way in ends with the same commit: mode, owner and time set, bytes on the disk, then one rename.  The time matters:
a starting Ollama removes unreferenced blobs that are older than an hour, and a renamed file keeps the time of its last
write.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline import crash
from pipeline.errors import FormatError
from pipeline.store import _disk, locks
from pipeline.store.manifest import is_digest
from pipeline.types import Blob

# Ollama takes a name of this form for no blob, and sweeps it an hour after its last write.
TEMP_PREFIX = "sha256-pkg-"

_CHUNK_BYTES = 4 << 20
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, copy on write


def hash_file(path: Path) -> Blob:
    """Read a file and return its digest and size."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(f"sha256:{digest}", file.tell())


def hash_bytes(data: bytes) -> Blob:
    """Return the digest and size of *data*."""
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


class Blobs:
    """The blobs/ folder of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs_dir = root / "blobs"

    def blob_path(self, digest: str) -> Path:
        """Return where the blob with this digest lies, whether or not it exists.

        Raises:
            FormatError: if *digest* is not "sha256:" and 64 lower-case hex digits.
        """
        if not is_digest(digest):
            raise FormatError("not a digest", expected="sha256: and 64 lower-case hex digits", found=repr(digest)[:80])
        return self.blobs_dir / digest.replace(":", "-")

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there, of *size* bytes if that is given.  Its content is not read."""
        try:
            found = self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    @contextmanager
    def blob_writer(self) -> Iterator[Path]:
        """Give the path of an empty file in blobs/ to write a coming blob into; it is removed if not committed.

        It lies on the store's own file system, so `commit_file` is a rename.  While the context lasts, `gc` of any
        process leaves temporary files alone.
        """
        with ExitStack() as stack:
            with _disk.translated(self.blobs_dir):
                _disk.make_folder(self.blobs_dir)
                stack.enter_context(locks.staging(self.root))
                fd, text = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=self.blobs_dir)
                os.close(fd)
            path = Path(text)
            stack.callback(path.unlink, missing_ok=True)
            yield path

    def commit_file(self, path: Path, digest: str) -> Blob:
        """Give a finished file on the store's file system its name by content; the caller has hashed it.

        A blob that is there already is replaced: by the same bytes, or it was not what its name says.

        Raises:
            ResourceError, AccessError: if the disk refuses.
        """
        final = self.blob_path(digest)
        with _disk.translated(final):
            path.chmod(_disk.FILE_MODE)
            _disk.adopt(path, self.blobs_dir)
            _disk.sync_file(path)
            os.utime(path)
            crash.point("blob synced")
            path.replace(final)
            crash.point("blob named")
            _disk.sync_folder(self.blobs_dir)
            crash.point("blob added")
            return Blob(digest, final.stat().st_size)

    def add_bytes(self, data: bytes) -> Blob:
        """Store *data*; nothing is written if it is there.

        Raises:
            ResourceError, AccessError: if the disk refuses.
        """
        blob = hash_bytes(data)
        with _disk.translated(self.blobs_dir):
            if not self._touch(blob):
                with self.blob_writer() as temp:
                    temp.write_bytes(data)
                    self.commit_file(temp, blob.digest)
        return blob

    def add_file(self, path: Path, digest: str, move: bool = False) -> Blob:
        """Store a copy of *path* (blocks are shared where the file system can), or the file itself with *move*.

        Raises:
            FormatError: if the file's bytes are not those of *digest*; the store and the file then stay as they were.
            ResourceError, AccessError: if the disk refuses.
        """
        with _disk.translated(path):
            blob = Blob(digest, path.stat().st_size)
            if not self._touch(blob):
                _disk.make_folder(self.blobs_dir)
                if move and path.stat().st_dev == self.blobs_dir.stat().st_dev:
                    _require(hash_file(path), digest, path)
                    return self.commit_file(path, digest)
                with self.blob_writer() as temp:
                    _require(_copied(path, temp), digest, path)
                    blob = self.commit_file(temp, digest)
            if move:
                path.unlink()
            return blob

    def _touch(self, blob: Blob) -> bool:
        """Make a blob that is there look new, so that no prune takes it; False if it must be written."""
        if not self.has(blob.digest, blob.size):
            return False
        try:
            os.utime(self.blob_path(blob.digest))
        except (PermissionError, FileNotFoundError):
            return False  # another user's, or just pruned: a new file in its place is ours
        return True


def _require(found: Blob, digest: str, path: Path) -> None:
    if found.digest != digest:
        raise FormatError("a file is not what its digest says", where=path, expected=digest, found=found.digest)


def _copied(source: Path, target: Path) -> Blob:
    """Copy *source* into *target* and return what was copied, hashed on the way."""
    with source.open("rb") as reader, target.open("wb") as writer:
        if _cloned(reader.fileno(), writer.fileno()):
            return hash_file(target)
        state, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while n := reader.readinto(buffer):
            state.update(buffer[:n])
            writer.write(buffer[:n])
            size += n
    return Blob(f"sha256:{state.hexdigest()}", size)


def _cloned(source: int, target: int) -> bool:
    """Share the blocks of two open files where the file system can (btrfs, XFS)."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
