"""One lock for a store: writers share it, removal has it alone.

Ollama itself takes no lock; this one keeps our own processes from removing a blob that another one is about to name.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

LOCK_FILE = ".gguf-pipeline.lock"
STAGING_FILE = ".gguf-pipeline.staging"

Message = Callable[[str], None]
Lock = Callable[[Path, Message], AbstractContextManager[None]]


def _quiet(_: str) -> None:
    """Say nothing."""


@contextmanager
def shared(root: Path, waiting: Message = _quiet) -> Iterator[None]:
    """Hold the store at *root* as a writer; *waiting* gets a sentence if another process must finish first."""
    with _held(root, fcntl.LOCK_SH, waiting):
        yield


@contextmanager
def exclusive(root: Path, waiting: Message = _quiet) -> Iterator[None]:
    """Hold the store at *root* alone; *waiting* gets a sentence if other processes must finish first."""
    with _held(root, fcntl.LOCK_EX, waiting):
        yield


@contextmanager
def staging(root: Path) -> Iterator[None]:
    """Hold the temporary files of the store at *root*: while anybody does, none of them is swept."""
    with _opened(root / STAGING_FILE) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield


@contextmanager
def sweeping(root: Path) -> Iterator[bool]:
    """Hold the temporary files of the store at *root* alone, and tell whether that succeeded; never wait."""
    with _opened(root / STAGING_FILE) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _held(root: Path, kind: int, waiting: Message) -> Iterator[None]:
    with _opened(root / LOCK_FILE) as fd:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(f"waiting for another gguf-pipeline that works on {root}")
            fcntl.flock(fd, kind)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open(path)
    try:
        yield fd
    finally:
        os.close(fd)  # the lock goes with it


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:
        # made by another user: a local file can be locked through a read-only descriptor as well
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(PermissionError):
        os.fchmod(fd, 0o644)  # whatever the umask
    return fd
