"""A folder of files under the addresses of the registry's protocol, so that any web server is a registry for reading.

    v2/<namespace>/<model>/blobs/sha256:<hex>
    v2/<namespace>/<model>/manifests/<tag>

A blob of two models is one file with two names, where the file system can.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import AccessError, ResourceError
from pipeline.store import Manifest, Name
from pipeline.types import Blob

_KEPT_SECONDS = 3600.0  # somebody may be in the middle of pulling the version that was just replaced
_TEMP_PREFIX = ".pkg-"


class StaticTree:
    """The tree under *root*; whoever writes to it holds the staging store's lock alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def manifest_path(self, name: Name) -> Path:
        """Return where the manifest of *name* lies, whether or not it exists."""
        return self.root / "v2" / name.namespace / name.model / "manifests" / name.tag

    def blob_path(self, name: Name, digest: str) -> Path:
        """Return where a blob of *name* lies, whether or not it exists."""
        return self.root / "v2" / name.namespace / name.model / "blobs" / digest

    def manifest_bytes(self, name: Name) -> bytes:
        """Return the manifest that *name* has."""
        with translated(self.root):
            return self.manifest_path(name).read_bytes()

    def blob_size(self, name: Name, digest: str) -> int | None:
        """Return the size of a blob of *name*, or None if it is not there."""
        path = self.blob_path(name, digest)
        return path.stat().st_size if path.is_file() else None

    def blob_bytes(self, name: Name, blob: Blob) -> bytes:
        """Return a small blob of *name*."""
        return self.blob_path(name, blob.digest).read_bytes()

    def put_blob(self, name: Name, blob: Blob, source: Path) -> None:
        """Give *source*, whose bytes are those of *blob*, its address, and the same file to other models that have it.

        Raises:
            AccessError, ResourceError: if the disk refuses.
        """
        final = self.blob_path(name, blob.digest)
        with translated(self.root):
            _make_folder(final.parent)
            for path in {final, *(self.root / "v2").glob(f"*/*/blobs/{blob.digest}")}:
                with _temporary(path.parent) as temp:
                    temp.unlink()
                    _link(source, temp)
                    temp.replace(path)
                _sync_folder(path.parent)

    def put_manifests(self, made: Sequence[tuple[Name, Manifest]]) -> None:
        """Make the names visible, all of them or, after an error, none.

        Raises:
            AccessError, ResourceError: if the disk refuses.
        """
        with translated(self.root), ExitStack() as restore:
            for name, manifest in made:
                path = self.manifest_path(name)
                restore.callback(_restore, path, path.read_bytes() if path.is_file() else None)
                _write(path, manifest.to_bytes())
            restore.pop_all()

    def prune(self, name: Name, before: set[str]) -> None:
        """Remove blobs of the model of *name* that no tag names; what was named *before* stays for an hour.

        Raises:
            AccessError: if the disk refuses.
        """
        with translated(self.root):
            named = self.named(name)
            for path in self.blob_path(name, "x").parent.iterdir():
                if path.name in before - named:
                    os.utime(path)
                elif path.name not in named:
                    _remove_old(path)
            for path in self.manifest_path(name).parent.glob(f"{_TEMP_PREFIX}*"):
                _remove_old(path)  # of a publication that was killed

    def named(self, name: Name) -> set[str]:
        """Return the digests that any tag of the model of *name* names.

        Raises:
            FormatError: if one of its manifests is none.
        """
        folder = self.manifest_path(name).parent
        paths = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
        manifests = [Manifest.from_bytes(path.read_bytes(), path) for path in paths if path.name[0] != "."]
        return {layer.blob.digest for manifest in manifests for layer in manifest.all_layers}


@contextmanager
def translated(root: Path) -> Iterator[None]:
    """Turn OSError into our errors."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("no space left on the disk", where=root, hint="free some space there") from exc
        raise AccessError(
            "the folder can not be written", where=root, found=str(exc), hint="name a folder of your own: static:DIR"
        ) from exc


def write_file(path: Path, text: str) -> None:
    """Write a small file whole or not at all; one that says so already stays.

    Raises:
        AccessError, ResourceError: if the disk refuses.
    """
    with translated(path.parent):
        if not path.is_file() or path.read_bytes() != text.encode():
            _write(path, text.encode())


def _remove_old(path: Path) -> None:
    if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
        path.unlink()


def _restore(path: Path, old: bytes | None) -> None:
    if old is not None:
        _write(path, old)
    elif path.is_file():
        path.unlink()


def _write(path: Path, data: bytes) -> None:
    _make_folder(path.parent)
    with _temporary(path.parent) as temp:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.chmod(0o644)
        temp.replace(path)
    _sync_folder(path.parent)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    fd, text = tempfile.mkstemp(prefix=_TEMP_PREFIX, dir=folder)
    os.close(fd)
    try:
        yield Path(text)
    finally:
        Path(text).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o644)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder that a web server can read, whatever the umask."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o755)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
