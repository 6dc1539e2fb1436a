"""Files that appear under their name only when they are whole: written beside it, locked, then renamed.

A living writer holds a lock on its temporary file, so that the next one knows which of them a killed writer left.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline import crash

_SUFFIX = ".part"
_DIGITS = 12


def open_beside(path: Path) -> tuple[Path, int]:
    """Open a new file beside *path* for what is to become it; return its name and a descriptor, which holds its lock.

    What killed writers of *path* left is removed.  Rename the file before the descriptor is closed.

    Raises:
        OSError: if the folder is missing or refuses, or *path* is something else than a file.
    """
    return _locked(path, lambda name: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


@contextmanager
def beside(path: Path) -> Iterator[tuple[Path, int]]:
    """Give a file of `open_beside`; it is closed at the end, and removed if it was not renamed."""
    temporary, fd = open_beside(path)
    try:
        yield temporary, fd
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def write_all(fd: int, data: memoryview) -> None:
    """Write all of *data*, which is bytes.

    Raises:
        OSError: if the disk refuses.
    """
    while data:
        data = data[os.write(fd, data) :]


def write_text(path: Path, text: str) -> None:
    """Make *path*, whose folder is made if it is missing, hold *text* in UTF-8.

    Raises:
        OSError: if the disk refuses; *path* is as it was then, and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as (temporary, fd):
        write_all(fd, memoryview(text.encode()))
        os.fsync(fd)
        crash.point("text written")
        temporary.replace(path)
        crash.point("text named")


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give a new folder beside *path*, for files that appear together; what is still in it at the end is removed.

    What killed writers of *path* left is removed first.

    Raises:
        OSError: if the folder of *path* is missing or refuses, or *path* is something else than a file.
    """
    folder, fd = _locked(path, _made_folder)
    try:
        yield folder
    finally:
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _made_folder(name: Path) -> int:
    name.mkdir()
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC)


def _locked(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Sweep what killed writers of *path* left, and lock what *make* opens under a new name beside it."""
    if path.exists() and not path.is_file():  # renaming would put a file in a device's place: root may do that
        raise FileExistsError(errno.EEXIST, "a folder, a pipe or a device has this name", str(path))
    _sweep(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(_DIGITS // 2)}{_SUFFIX}")
        fd = make(temporary)
        with suppress(OSError):  # a disk without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, fd
        os.close(fd)  # it was swept before it was locked


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * _DIGITS}{_SUFFIX}"):
        with suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            finally:
                os.close(fd)
