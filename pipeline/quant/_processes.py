"""NumPy's kernels in processes of their own: threads would wait for each other's interpreter lock.

A kernel is thousands of short NumPy calls, each of which gives the lock back and wants it again; two threads take
longer than one.  So rows go through shared memory to a child, which quantizes them and puts the blocks beside them.  A
child ends when its standard input does, and so with its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from pipeline.errors import ResourceError
from pipeline.quant._base import F32, U8, BlockType

# What a child is asked for: the name of a type, rows, columns, whether there is an importance matrix, bytes in all.
REQUEST: Final = struct.Struct("<16sqq?q")
DONE: Final = b"\n"
_ALIGNMENT: Final = 64


class Shared(NamedTuple):
    """The arrays of one request in shared memory: rows, their importance if there is one, and blocks."""

    x: F32
    importance: F32 | None
    out: U8

    @classmethod
    def of(cls, memory: mmap.mmap, kind: BlockType, shape: tuple[int, int], *, is_weighted: bool) -> Shared:
        """Lay the arrays for rows of *shape* over *memory*."""
        (n_rows, n_cols), row_bytes = shape, kind.row_bytes(shape[1])
        x_bytes, importance_bytes, _ = _sizes(kind, shape)
        x = np.frombuffer(memory, np.float32, n_rows * n_cols).reshape(shape)
        importance = np.frombuffer(memory, np.float32, n_cols, x_bytes) if is_weighted else None
        out = np.frombuffer(memory, np.uint8, n_rows * row_bytes, x_bytes + importance_bytes)
        return cls(x, importance, out.reshape(n_rows, row_bytes))


def _sizes(kind: BlockType, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Return the bytes of rows, importance and blocks, each up to where the next may begin."""
    n_rows, n_cols = shape
    sizes = n_rows * n_cols * 4, n_cols * 4, n_rows * kind.row_bytes(n_cols)
    x, importance, out = (-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
    return x, importance, out


def _memory_file() -> int:
    """Open a file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("gguf-pipeline")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Child:
    """One process, and the memory that it shares with this one."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._descriptor = _memory_file()
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # threads it would not use
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.quant._child", str(self._descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._descriptor,),
            env=environment,
        )

    def quantize(self, kind: BlockType, x: F32, out: U8, importance: F32 | None) -> None:
        """Let the child do what `BlockType.quantize_rows` does.

        Raises:
            ResourceError: if it ended.
        """
        n_rows, n_cols = x.shape
        memory = self._grow(sum(_sizes(kind, (n_rows, n_cols))))
        shared = Shared.of(memory, kind, (n_rows, n_cols), is_weighted=importance is not None)
        shared.x[...] = x
        if importance is not None and shared.importance is not None:
            shared.importance[...] = importance
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  both are pipes
        assert stdout is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):
            stdin.write(REQUEST.pack(kind.name.encode(), n_rows, n_cols, importance is not None, len(memory)))
            stdin.flush()
        if stdout.read(len(DONE)) != DONE:
            raise ResourceError(
                "a process that quantizes ended",
                where=f"process {self.pid}",
                expected="blocks",
                found=f"exit status {self._process.wait()}",
                hint="if memory ran out, take fewer threads: --threads 1 works in this process alone",
            )
        out[...] = shared.out

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def _grow(self, n_bytes: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < n_bytes:
            os.ftruncate(self._descriptor, n_bytes)
            self._memory = mmap.mmap(self._descriptor, n_bytes)
        return self._memory

    def end(self) -> None:
        """End the process; it has nothing to lose."""
        self._process.kill()
        self._process.communicate()
        os.close(self._descriptor)


class Processes:
    """Quantizes in *n* processes, each with one request at a time; threads may share it."""

    def __init__(self, n: int) -> None:
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._all: list[_Child] = []
        try:
            for _ in range(n):
                self._all.append(_Child())
                self._free.put(self._all[-1])
        except BaseException:
            self.end()
            raise

    @property
    def pids(self) -> list[int]:
        """Return the numbers of the processes."""
        return [child.pid for child in self._all]

    def quantize_rows(self, kind: BlockType, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Do what `BlockType.quantize_rows` does.

        Raises:
            ResourceError: if a process ended.
        """
        kind.check(x, out, importance)
        child = self._free.get()
        try:
            child.quantize(kind, x, out, importance)
        finally:
            self._free.put(child)

    def end(self) -> None:
        """End the processes."""
        for child in self._all:
            child.end()


@contextlib.contextmanager
def processes(n: int) -> Iterator[Processes]:
    """Have *n* processes while the block runs."""
    running = Processes(n)
    try:
        yield running
    finally:
        running.end()
