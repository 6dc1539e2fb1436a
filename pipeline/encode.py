"""From plans to files: every source tile is read and decoded once, encoded for every output, written in order.

Worker threads encode tasks, a few tiles each; the calling thread writes and hashes them in plan order, so the files are
the same whatever the number of threads.  Memory is one tile for each worker, and the encodings of each task in flight.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import quant
from pipeline.checkpoint import TensorReader
from pipeline.gguf import GgufWriter, tensor_bytes
from pipeline.machine import usable_cores
from pipeline.measure import ErrorMeter, Sample, Sums, keeps_values
from pipeline.soundness import check_encoded, check_finite
from pipeline.types import Blob, Plan, PlannedTensor

# The most elements in a tile; an engine may want fewer.
TILE_ELEMENTS = 1 << 19

# A task is as many tiles as come to so many bytes for the outputs, one at least: handing over costs what a tile does.
_TASK_BYTES = 5 << 18

# Tasks in flight beside those that are encoded: with two, workers waited while the oldest one was written.
_AHEAD = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Output:
    """One file to write: what the plan says, at *path*."""

    plan: Plan
    path: Path


@dataclass(frozen=True)
class _Task:
    """Rows *first* to *stop* of one tensor, planned once for each output; they are encoded *step* rows at a time."""

    tensors: tuple[PlannedTensor, ...]
    first: int
    stop: int
    step: int


class _Scratch:
    """Buffers of one task or worker; they grow to the largest that is wanted and are used again."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def bytes(self, name: str, n_rows: int, row_bytes: int) -> np.ndarray:
        """Return a uint8 array (n_rows, row_bytes) that is this scratch's own."""
        size = n_rows * row_bytes
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            # Aligned to a float32 by NumPy's own allocator.
            buffer = self._buffers[name] = np.empty(size, np.uint8)
        return buffer[:size].reshape(n_rows, row_bytes)

    def floats(self, n_rows: int, n_cols: int) -> np.ndarray:
        """Return a float32 array (n_rows, n_cols) that is this scratch's own."""
        return self.bytes("floats", n_rows, n_cols * 4).view(np.float32)


@dataclass(frozen=True)
class _Encoded:
    """What became of a task, for each output: its bytes (n_rows, row_bytes), and what the meter saw of each tile."""

    parts: list[np.ndarray]
    seen: list[list[Sums | Sample]]


class _Own(threading.local):
    """What a worker thread keeps from tile to tile, so that it stays in the cache of its core."""

    def __init__(self) -> None:
        self.scratch = _Scratch()


def encode(
    outputs: Sequence[Output],
    reader: TensorReader,
    *,
    threads: int = 0,
    engine: str = quant.AUTO,
    progress: Progress | None = None,
    on_error: Callable[[], None] | None = None,
    meter: ErrorMeter | None = None,
) -> list[Blob]:
    """Write the files of *outputs*, which are plans of one blueprint, and return their digests in the same order.

    Args:
        outputs: plans with the same tensors in the same order; only types and offsets may differ.
        reader: reads the source tensors.
        threads: worker threads; 0 means one for each core.
        engine: what quantizes, a name for `quant.get_engine`.
        progress: called with the weights done and the weights in all, from the calling thread.
        on_error: called first when something fails, so that threads which wait for a download wait no longer.
        meter: measures the errors of what is encoded.

    Raises:
        FormatError: if a source is truncated, or holds NaN or Inf, or does not fit the type of an output.
        ResourceError: if the disk is full.
    """
    workers = threads or usable_cores()
    total = sum(t.n_rows * t.n_cols for t in outputs[0].plan.tensors)
    done = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(GgufWriter(out.path, out.plan)) for out in outputs]
        files = [out.plan.tensors for out in outputs]
        chosen = choose_engine(engine, files)
        chosen = stack.enter_context(chosen.in_parallel(workers, _to_quantize(files)))
        if meter:
            meter.engine = chosen
        pool = stack.enter_context(ThreadPoolExecutor(workers, "encode"))
        if on_error is not None:
            stack.push(lambda kind, _error, _trace: on_error() if kind else None)
        tasks = _tasks(zip(*files, strict=True), chosen)
        for task, encoded in _in_order(pool, workers, tasks, reader, chosen, meter):
            for output, (writer, tensor, part) in enumerate(zip(writers, task.tensors, encoded.parts, strict=True)):
                if task.first == 0:
                    writer.begin(tensor)
                writer.write(part)
                if task.stop == tensor.n_rows:
                    writer.end()
                if meter:
                    for seen in encoded.seen[output]:
                        meter.add(outputs[output].plan.recipe, tensor, seen)
            done += (task.stop - task.first) * task.tensors[0].n_cols
            if progress:
                progress(done, total)
        return [writer.commit() for writer in writers]


def derive(
    tensors: Sequence[PlannedTensor], reader: TensorReader, *, threads: int = 0, engine: str = quant.AUTO
) -> Iterator[tuple[PlannedTensor, int, np.ndarray]]:
    """Encode *tensors* as `encode` does, but write nothing: yield tensor, first row and bytes (n_rows, row_bytes).

    The bytes are valid until the next ones are asked for.

    Raises:
        FormatError: as `encode` does.
    """
    workers = threads or usable_cores()
    chosen, n_weights = choose_engine(engine, [tensors]), _to_quantize([tensors])
    with chosen.in_parallel(workers, n_weights) as chosen, ThreadPoolExecutor(workers, "derive") as pool:
        tasks = _tasks(((tensor,) for tensor in tensors), chosen)
        for task, encoded in _in_order(pool, workers, tasks, reader, chosen):
            yield task.tensors[0], task.first, encoded.parts[0]


def choose_engine(name: str, files: Sequence[Sequence[PlannedTensor]]) -> quant.Engine:
    """Return the engine called *name* for writing *files*, given by their tensors; a type wanted twice counts once.

    Raises:
        UsageError: if there is no such engine.
        ToolError: if it is not installed.
    """
    work = Counter[str]()
    for (_, kind), n in work_of(files).items():
        work[kind] += n
    return quant.get_engine(name, work)


def work_of(files: Sequence[Sequence[PlannedTensor]]) -> Counter[tuple[str, str]]:
    """Count the weights that are encoded from one type into another; a type that several files want counts once."""
    work = Counter[tuple[str, str]]()
    for tensors in zip(*files, strict=True):
        dtype = tensors[0].view.dtype if tensors[0].view else tensors[0].type
        for kind in {tensor.type for tensor in tensors} - {dtype}:
            work[dtype, kind] += tensors[0].n_rows * tensors[0].n_cols
    return work


def _to_quantize(files: Sequence[Sequence[PlannedTensor]]) -> int:
    """Count the weights that become blocks of our own making, for each type anew: the others need no processes."""
    work = [(quant.get(kind), n) for (_, kind), n in work_of(files).items()]
    return sum(n for kind, n in work if kind.block_size > 1 and not isinstance(kind, quant.NativeType))


def memory_bytes(plans: Sequence[Plan], threads: int, engine: str = quant.AUTO) -> int:
    """Estimate the most memory that `encode` takes: tiles in flight, and what each worker uses beside them."""
    files = [plan.tensors for plan in plans]
    chosen = choose_engine(engine, files)
    own = made = 0
    wanted: set[str] = set()
    for task in _tasks(zip(*files, strict=True), chosen, only_first=True):
        first, kinds = task.tensors[0], {tensor.type for tensor in task.tensors}
        dtype = first.view.dtype if first.view else first.type
        n = min(task.step, task.stop) * first.n_cols
        changed = kinds - {dtype}
        has_floats = any(first.importance is not None or not _is_direct(dtype, kind, chosen) for kind in changed)
        # As it is read, its bits when they are checked for NaN, its values.
        own = max(own, 3 * tensor_bytes(dtype, (n,)) + has_floats * 4 * n)
        made = max(made, task.stop * sum(tensor_bytes(kind, (first.n_cols,)) for kind in kinds))
        wanted |= changed
    return (threads + _AHEAD) * made + threads * own + chosen.memory_bytes(wanted, threads, _to_quantize(files))


def _is_direct(dtype: str, kind: str, engine: quant.Engine) -> bool:
    """Say whether *kind* is made without float32 values in between."""
    return dtype == "BF16" and engine.reads_bf16(quant.get(kind))


def _tasks(
    planned: Iterable[tuple[PlannedTensor, ...]], engine: quant.Engine, *, only_first: bool = False
) -> Iterator[_Task]:
    """Cut tensors into tasks; *only_first* gives the first one of each, which is the largest."""
    for tensors in planned:
        n_rows, n_cols = tensors[0].n_rows, tensors[0].n_cols
        step = max(1, min(TILE_ELEMENTS, engine.tile_elements) // n_cols)
        row_bytes = sum(tensor_bytes(kind, (n_cols,)) for kind in {tensor.type for tensor in tensors})
        height = step * max(1, _TASK_BYTES // (step * row_bytes))
        for first in range(0, min(1, n_rows) if only_first else n_rows, height):
            yield _Task(tensors, first, min(first + height, n_rows), step)


def _in_order(
    pool: ThreadPoolExecutor,
    workers: int,
    tasks: Iterator[_Task],
    reader: TensorReader,
    engine: quant.Engine,
    meter: ErrorMeter | None = None,
) -> Iterator[tuple[_Task, _Encoded]]:
    """Encode tasks on the pool, a few ahead of the writer, and give them back in their order."""
    own = _Own()
    free: queue.SimpleQueue[_Scratch] = queue.SimpleQueue()
    for _ in range(workers + _AHEAD):
        free.put(_Scratch())
    waiting: deque[tuple[_Task, _Scratch, Future[_Encoded]]] = deque()

    def oldest() -> Iterator[tuple[_Task, _Encoded]]:
        task, scratch, future = waiting.popleft()
        yield task, future.result()
        free.put(scratch)

    try:
        for task in tasks:
            if free.empty():
                yield from oldest()
            scratch = free.get()
            waiting.append((task, scratch, pool.submit(_encode, task, reader, engine, scratch, own, meter)))
        while waiting:
            yield from oldest()
    finally:
        for _, _, future in waiting:
            future.cancel()


def _encode(
    task: _Task, reader: TensorReader, engine: quant.Engine, scratch: _Scratch, own: _Own, meter: ErrorMeter | None
) -> _Encoded:
    """Read, check and encode the tiles of a task for each output; a type that several want is made once."""
    tensor, n_rows = task.tensors[0], task.stop - task.first
    view = tensor.view
    assert view is not None  # noqa: S101  only hand-made plans, for headers, have none
    by_type = {planned.type: planned for planned in task.tensors}
    made = {kind: scratch.bytes(kind, n_rows, tensor_bytes(kind, (tensor.n_cols,))) for kind in by_type}
    seen: dict[str, list[Sums | Sample]] = {kind: [] for kind in by_type}
    kept = made.get(view.dtype)
    for first in range(task.first, task.stop, task.step):
        stop = min(first + task.step, task.stop)
        place = slice(first - task.first, stop - task.first)
        row_bytes = tensor_bytes(view.dtype, (tensor.n_cols,))
        raw = own.scratch.bytes("raw", stop - first, row_bytes) if kept is None else kept[place]
        view.read(reader, np.arange(first, stop, dtype=np.int64), slice(None), raw)
        values = _Values(reader, engine, own.scratch, raw, tensor, first)
        for kind, planned in by_type.items():
            if kind == view.dtype:
                values.check()
                continue
            part = made[kind][place]
            if not _quantize(engine, planned, values, part, first):
                check_encoded(engine, part, values.all, planned, first)
            if meter and not keeps_values(view.dtype, kind):
                seen[kind].append(meter.look(planned, raw, values.decode, part, first))
    return _Encoded([made[t.type] for t in task.tensors], [seen[t.type] for t in task.tensors])


class _Values:
    """The float32 values of a tile, which are decoded when they are first wanted.

    *is_finite* is true once somebody has seen that none is NaN or Inf.
    """

    def __init__(
        self,
        reader: TensorReader,
        engine: quant.Engine,
        scratch: _Scratch,
        raw: np.ndarray,
        tensor: PlannedTensor,
        first_row: int,
    ) -> None:
        self.raw = raw
        assert tensor.view is not None  # noqa: S101  see above
        self.dtype = tensor.view.dtype
        self._reader, self._engine, self._scratch = reader, engine, scratch
        self._tensor, self._first_row = tensor, first_row
        self._all: np.ndarray | None = None
        self.is_finite = False

    def check(self) -> None:
        """Refuse NaN and Inf, if that was not done before."""
        if not self.is_finite:
            check_finite(self._engine, self.raw, self.dtype, self._tensor, self._first_row)
            self.is_finite = True

    def all(self) -> np.ndarray:
        """Return all, float32 (n_rows, n_cols); those of a quantized tile (requantizing) are checked here."""
        if self._all is None:
            floats = self._scratch.floats(len(self.raw), self._tensor.n_cols)
            self.decode(self.raw, floats)
            if quant.get(self.dtype).block_size > 1:
                check_finite(self._engine, floats.view(np.uint8), "F32", self._tensor, self._first_row)
            self._all = floats
        return self._all

    def decode(self, raw: np.ndarray, floats: np.ndarray) -> None:
        """Decode rows of the source's type, uint8 (n_rows, n_bytes), to float32 (n_rows, n_cols)."""
        kind = quant.get(self.dtype)
        if decode := self._engine.decoder(kind):
            decode(raw, floats)
        elif kind.block_size == 1:
            self._reader.decode(self.dtype, raw, floats)
        else:
            kind.dequantize_rows(raw, floats)


def _quantize(engine: quant.Engine, tensor: PlannedTensor, values: _Values, out: np.ndarray, first_row: int) -> bool:
    """Quantize rows of a tensor, unless one is not finite, and say whether their scales were seen to be.

    The rows of each of its matrices have their own importance.
    """
    kind = quant.get(tensor.type)
    if tensor.importance is None and values.dtype == "BF16" and (from_bf16 := engine.from_bf16(kind)):
        if from_bf16(values.raw.view(np.uint16), out):
            values.is_finite = True
            return True
        values.check()
        return False
    values.check()
    if tensor.importance is None:
        engine.quantize_rows(kind, values.all(), out)
        return False
    floats = values.all()
    start, height = 0, tensor.shape[-2]
    while start < len(floats):
        matrix, row = divmod(first_row + start, height)
        stop = min(len(floats), start + height - row)
        engine.quantize_rows(kind, floats[start:stop], out[start:stop], tensor.importance[matrix])
        start = stop
    return False
