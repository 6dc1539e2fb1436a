"""Write one planned GGUF file: tensor bytes come in, in plan order; a whole, hashed file appears under its name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline import crash, whole
from pipeline.errors import AccessError, FormatError, ResourceError
from pipeline.gguf.header import alignment_of, encode_plan_header
from pipeline.gguf.tensor_types import padded, tensor_bytes
from pipeline.types import Blob, Plan, PlannedTensor

_WORTH_A_THREAD = 1 << 17  # bytes; handing over a chunk takes as long as hashing some thousands

_SYNC_EVERY = 1 << 26  # bytes; what is on the disk early need not be waited for at the end

Chunk = bytes | bytearray | memoryview | np.ndarray


class GgufWriter:
    """Context manager that writes the file of *plan* beside *path* and moves it there when it is whole.

    Every tensor is written completely and in plan order; padding and sha256 are the writer's own work.  Leaving the
    context without `commit` removes what was written; *path* itself is never touched before `commit`.

        with GgufWriter(path, plan) as out:
            for tensor in plan.tensors:
                out.begin(tensor)
                for tile in tiles(tensor):
                    out.write(tile)
                out.end()
            blob = out.commit()

    Raises:
        FormatError: if the plan contradicts itself, or what is written contradicts the plan.
        ResourceError: if the disk has no room for `plan.file_bytes`.
        AccessError: if the folder of *path* is missing or refuses.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self._temporary: Path | None = None
        self._fd = -1
        self._sha256 = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._synced = 0  # the position when the last sync began
        self._position = 0  # absolute, in bytes
        self._next = 0  # index of the tensor that must begin next
        self._current: PlannedTensor | None = None

    def __enter__(self) -> Self:
        header = encode_plan_header(self.plan.metadata, self.plan.tensors)
        _check_sizes(self.plan, len(header))
        self._open()
        try:
            with refused(self.path, self.plan.file_bytes):
                reserve(self._fd, self.plan.file_bytes)
            self._append(memoryview(header))
            crash.point("header written")
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def begin(self, tensor: PlannedTensor) -> None:
        """Start *tensor*, which must be the next one of the plan.

        Raises:
            FormatError: if another tensor is due, or one is still open.
        """
        due = self.plan.tensors[self._next].name if self._next < len(self.plan.tensors) else "commit"
        if self._current is not None:
            raise FormatError("a tensor begins before the one before it ended", where=tensor.name, expected=due)
        if self._next >= len(self.plan.tensors) or tensor != self.plan.tensors[self._next]:
            raise FormatError("tensors must be written in plan order", where=self.path, expected=due, found=tensor.name)
        self._current = tensor

    def write(self, data: Chunk) -> None:
        """Append *data*, the next bytes of the open tensor; an array must be C-contiguous.

        Raises:
            FormatError: if no tensor is open, or *data* is more than it has left.
            ResourceError: if the disk is full.
        """
        chunk = _as_bytes(data)
        if self._current is None:
            raise FormatError("bytes outside a tensor", where=self.path, expected="begin() first", found=len(chunk))
        left = self._end_of(self._current) - self._position
        if len(chunk) > left:
            raise FormatError(
                "more bytes than the tensor has",
                where=self._current.name,
                expected=f"{self._current.n_bytes} bytes",
                found=f"{self._current.n_bytes - left + len(chunk)} bytes",
            )
        self._append(chunk)
        crash.point("chunk written")

    def end(self) -> None:
        """Close the open tensor and pad with zeros up to the next one.

        Raises:
            FormatError: if no tensor is open, or it is not complete.
        """
        if self._current is None:
            raise FormatError("no tensor is open", where=self.path)
        left = self._end_of(self._current) - self._position
        if left:
            raise FormatError(
                "the tensor is not complete",
                where=self._current.name,
                expected=f"{self._current.n_bytes} bytes",
                found=f"{self._current.n_bytes - left} bytes",
            )
        stop = self.plan.data_start + padded(self._position - self.plan.data_start, alignment_of(self.plan.metadata))
        self._append(memoryview(bytes(stop - self._position)))
        self._current = None
        self._next += 1

    def commit(self) -> Blob:
        """Make the file durable, move it to its name and return its digest and size.

        Raises:
            FormatError: if a tensor is missing.
            ResourceError: if the disk is full.
        """
        if self._fd < 0:
            raise FormatError("the writer is closed", where=self.path)
        if self._current is not None or self._next < len(self.plan.tensors):
            missing = self.plan.tensors[self._next].name
            raise FormatError("a tensor is missing", where=self.path, expected=missing, found="commit")
        assert self._temporary is not None  # noqa: S101  it is open
        crash.point("file written")
        with refused(self.path, self.plan.file_bytes):
            if self._syncing:
                self._syncing.result()
            os.fsync(self._fd)
            crash.point("file synced")
            self._temporary.replace(self.path)
            crash.point("file named")
            _sync_folder(self.path.parent)
        self._close()
        return Blob("sha256:" + self._sha256.hexdigest(), self._position)

    def _open(self) -> None:
        with refused(self.path, self.plan.file_bytes):
            if shutil.disk_usage(self.path.parent).free < self.plan.file_bytes:
                raise _no_room(self.path, self.plan.file_bytes, "before writing")
            self._temporary, self._fd = whole.open_beside(self.path)

    def _end_of(self, tensor: PlannedTensor) -> int:
        return self.plan.data_start + tensor.offset + tensor.n_bytes

    def _append(self, chunk: memoryview) -> None:
        """Hash and write *chunk*: large ones at the same time, for both are at work outside the interpreter."""
        hashing: AbstractContextManager[None] = nullcontext()
        if len(chunk) < _WORTH_A_THREAD:
            self._sha256.update(chunk)
        else:
            hashing = _until_done(self._hasher.submit(self._sha256.update, chunk))
        self._position += len(chunk)
        with hashing, refused(self.path, self.plan.file_bytes):
            whole.write_all(self._fd, chunk)
            self._sync_meanwhile()

    def _sync_meanwhile(self) -> None:
        """Have the disk write what there is now and then, while the work goes on.

        Raises:
            OSError: if it could not the last time; the system would not say so again.
        """
        if self._position - self._synced < _SYNC_EVERY or (self._syncing and not self._syncing.done()):
            return
        if self._syncing:
            self._syncing.result()
        self._syncing, self._synced = self._syncer.submit(os.fsync, self._fd), self._position

    def _close(self) -> None:
        self._hasher.shutdown()
        self._syncer.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _discard(self) -> None:
        self._close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


@contextmanager
def _until_done(future: Future[None]) -> Iterator[None]:
    """Wait for *future* at the end, whatever happens: it uses the caller's memory."""
    try:
        yield
    finally:
        future.result()


def _as_bytes(data: Chunk) -> memoryview:
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise FormatError("an array must be C-contiguous", found=f"shape {data.shape}, strides {data.strides}")
        return data.reshape(-1).view(np.uint8).data  # bfloat16 has no buffer of its own
    return memoryview(data).cast("B")


def _check_sizes(plan: Plan, header_bytes: int) -> None:
    """Compare the plan's numbers with what its types, shapes and metadata give."""
    if plan.data_start != header_bytes:
        raise FormatError(
            "the plan's data section is not behind its header", expected=header_bytes, found=plan.data_start
        )
    end = 0
    for tensor in plan.tensors:
        n_bytes = tensor_bytes(tensor.type, tensor.shape)
        if tensor.n_bytes != n_bytes:
            raise FormatError("the planned size is wrong", where=tensor.name, expected=n_bytes, found=tensor.n_bytes)
        end = tensor.offset + padded(n_bytes, alignment_of(plan.metadata))
    if plan.file_bytes != plan.data_start + end:
        raise FormatError("the planned file size is wrong", expected=plan.data_start + end, found=plan.file_bytes)


def reserve(fd: int, n_bytes: int) -> None:
    """Reserve all *n_bytes* of a file, so that a full disk shows before the work and not after it.

    Raises:
        OSError: if the disk has no room.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # the file system cannot reserve
            raise


@contextmanager
def refused(path: Path, n_bytes: int) -> Iterator[None]:
    """Say in our words why the disk refused *path*, which is to have *n_bytes*.

    Raises:
        ResourceError: if it is full.
        AccessError: for any other reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(path, n_bytes, os.strerror(error.errno)) from error
        raise AccessError(
            "the file cannot be written",
            where=path,
            found=error.strerror or error,
            hint=f"check {path.parent} and its rights, or choose another folder",
        ) from error


def _no_room(path: Path, needed: int, when: str) -> ResourceError:
    free = shutil.disk_usage(path.parent).free
    return ResourceError(
        f"not enough disk space ({when})",
        where=path,
        expected=f"{needed} bytes free",
        found=f"{free} bytes free",
        hint="free some space, or choose another folder",
    )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
