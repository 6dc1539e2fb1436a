"""Small things done to files with care: durable renames, folders with the right owner, errors in our own words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import AccessError, ResourceError

FILE_MODE = 0o644
FOLDER_MODE = 0o755


@contextmanager
def translated(where: Path) -> Iterator[None]:
    """Turn OSError into our errors: no space, no permission, anything else that the disk refuses."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                "no space left on the disk",
                where=where,
                hint="free some space; models that are not needed can be removed",
            ) from exc
        hint = "check the folder and its disk, or choose another store"
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "run as the owner of the store (for a service's store: sudo), or choose another store"
        raise AccessError("the store can not be read or written", where=where, found=str(exc), hint=hint) from exc


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries (a rename in it) to the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def adopt(path: Path, like: Path) -> None:
    """Give *path* the owner of *like*, when we are root: a daemon must own the blobs to touch and remove them."""
    if os.geteuid() != 0:
        return
    want, have = like.stat(), path.stat()
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid):
        os.chown(path, want.st_uid, want.st_gid)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, 0755 whatever the umask, each owned like its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        return
    path.chmod(FOLDER_MODE)
    adopt(path, path.parent)


def remove_empty_folders(folder: Path, stop: Path) -> None:
    """Remove *folder* and its parents below *stop*, as far as they are empty."""
    while folder != stop:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
