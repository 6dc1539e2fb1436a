"""From plans to files: every source tile is read and decoded once, encoded for every output, written in order.

Worker threads encode tiles; the calling thread writes and hashes them in plan order, so the files are the same whatever
the number of threads.  Memory is one tile, with its encodings, for each tile in flight.
"""

from __future__ import annotations

import contextlib
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import quant
from pipeline.checkpoint import TensorReader
from pipeline.errors import FormatError
from pipeline.gguf import GgufWriter, tensor_bytes
from pipeline.machine import usable_cores
from pipeline.measure import ErrorMeter, Sample, Sums, keeps_values
from pipeline.types import Blob, Plan, PlannedTensor, View

# The most elements in a tile; an engine may want fewer.
TILE_ELEMENTS = 1 << 19

# Tiles in flight beside those that are encoded: with two, workers waited while the oldest one was written.
_AHEAD = 4

# Exponent bits that are all ones mean Inf or NaN; a magnitude from here on is not finite.
_NOT_FINITE: dict[str, tuple[Any, int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "MXFP4": (np.uint8, 0xFF, 0xFF),  # the scale of a block, its first byte
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Output:
    """One file to write: what the plan says, at *path*."""

    plan: Plan
    path: Path


@dataclass(frozen=True)
class _Tile:
    """Rows *first* to *stop* of one tensor, planned once for each output."""

    tensors: tuple[PlannedTensor, ...]
    first: int
    stop: int


class _Scratch:
    """Buffers of one tile in flight; they grow to the largest tile and are used again."""

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
    """What became of a tile, for each output: its bytes (n_rows, row_bytes), and what the meter saw of it."""

    parts: list[np.ndarray]
    seen: list[Sums | Sample | None]


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
        chosen = choose_engine(engine, [out.plan.tensors for out in outputs])
        chosen = stack.enter_context(chosen.in_parallel(workers, total))
        if meter:
            meter.engine = chosen
        pool = stack.enter_context(ThreadPoolExecutor(workers, "encode"))
        if on_error is not None:
            stack.push(lambda kind, _error, _trace: on_error() if kind else None)
        tiles = _tiles(zip(*(out.plan.tensors for out in outputs), strict=True), chosen)
        for tile, encoded in _in_order(pool, workers, tiles, reader, chosen, meter):
            for output, (writer, tensor, part) in enumerate(zip(writers, tile.tensors, encoded.parts, strict=True)):
                if tile.first == 0:
                    writer.begin(tensor)
                writer.write(part)
                if tile.stop == tensor.n_rows:
                    writer.end()
                if meter and (seen := encoded.seen[output]):
                    meter.add(outputs[output].plan.recipe, tensor, seen)
            done += (tile.stop - tile.first) * tile.tensors[0].n_cols
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
    chosen, total = choose_engine(engine, [tensors]), sum(t.n_rows * t.n_cols for t in tensors)
    with chosen.in_parallel(workers, total) as chosen, ThreadPoolExecutor(workers, "derive") as pool:
        for tile, encoded in _in_order(
            pool, workers, _tiles(((tensor,) for tensor in tensors), chosen), reader, chosen
        ):
            yield tile.tensors[0], tile.first, encoded.parts[0]


def choose_engine(name: str, files: Sequence[Sequence[PlannedTensor]]) -> quant.Engine:
    """Return the engine called *name* for writing *files*, given by their tensors; a type wanted twice counts once.

    Raises:
        UsageError: if there is no such engine.
        ToolError: if it is not installed.
    """
    work = Counter[str]()
    for tensors in zip(*files, strict=True):
        dtype = tensors[0].view.dtype if tensors[0].view else tensors[0].type
        for kind in {tensor.type for tensor in tensors} - {dtype}:
            work[kind] += tensors[0].n_rows * tensors[0].n_cols
    return quant.get_engine(name, work)


def memory_bytes(plans: Sequence[Plan], threads: int, engine: str = quant.AUTO) -> int:
    """Estimate the most memory that `encode` takes: tiles in flight, and what each worker uses beside them."""
    chosen = choose_engine(engine, [plan.tensors for plan in plans])
    raw = made = 0
    wanted: set[str] = set()
    for tensors in zip(*(plan.tensors for plan in plans), strict=True):
        first = tensors[0]
        n = min(first.n_rows, _rows_of_tile(first.n_cols, chosen)) * first.n_cols
        dtype = first.view.dtype if first.view else first.type
        kinds = {tensor.type for tensor in tensors} - {dtype}
        raw = max(raw, _bytes_of(dtype, n))
        made = max(made, sum(_bytes_of(kind, n) for kind in kinds) + 4 * n if kinds else 0)
        wanted |= kinds
    # Beside its tile a worker has the tile's bits, checked for NaN.
    tiles = (threads + _AHEAD) * (raw + made) + threads * 2 * raw
    total = sum(t.n_rows * t.n_cols for t in plans[0].tensors) if plans else 0
    return tiles + chosen.memory_bytes(wanted, threads, total)


def _bytes_of(kind: str, n: int) -> int:
    return tensor_bytes(kind, (n,))


def _rows_of_tile(n_cols: int, engine: quant.Engine) -> int:
    return max(1, min(TILE_ELEMENTS, engine.tile_elements) // n_cols)


def _tiles(planned: Iterable[tuple[PlannedTensor, ...]], engine: quant.Engine) -> Iterator[_Tile]:
    for tensors in planned:
        n_rows, n_cols = tensors[0].n_rows, tensors[0].n_cols
        step = _rows_of_tile(n_cols, engine)
        for first in range(0, n_rows, step):
            yield _Tile(tensors, first, min(first + step, n_rows))


def _in_order(
    pool: ThreadPoolExecutor,
    workers: int,
    tiles: Iterator[_Tile],
    reader: TensorReader,
    engine: quant.Engine,
    meter: ErrorMeter | None = None,
) -> Iterator[tuple[_Tile, _Encoded]]:
    """Encode tiles on the pool, a few ahead of the writer, and give them back in their order."""
    free: queue.SimpleQueue[_Scratch] = queue.SimpleQueue()
    for _ in range(workers + _AHEAD):
        free.put(_Scratch())
    waiting: deque[tuple[_Tile, _Scratch, Future[_Encoded]]] = deque()

    def oldest() -> Iterator[tuple[_Tile, _Encoded]]:
        tile, scratch, future = waiting.popleft()
        yield tile, future.result()
        free.put(scratch)

    try:
        for tile in tiles:
            if free.empty():
                yield from oldest()
            scratch = free.get()
            waiting.append((tile, scratch, pool.submit(_encode_tile, tile, reader, engine, scratch, meter)))
        while waiting:
            yield from oldest()
    finally:
        for _, _, future in waiting:
            future.cancel()


def _encode_tile(
    tile: _Tile, reader: TensorReader, engine: quant.Engine, scratch: _Scratch, meter: ErrorMeter | None
) -> _Encoded:
    """Read and check one tile, and encode it for each output; a type that several want is made once."""
    tensor = tile.tensors[0]
    view = tensor.view
    assert view is not None  # noqa: S101  only hand-made plans, for headers, have none
    n_rows = tile.stop - tile.first
    raw = scratch.bytes("raw", n_rows, tensor_bytes(view.dtype, (tensor.n_cols,)))
    view.read(reader, np.arange(tile.first, tile.stop, dtype=np.int64), slice(None), raw)
    if view.dtype in _NOT_FINITE:
        _check_finite(engine, raw, view.dtype, view, tensor, tile.first)
    values = _Values(reader, engine, scratch, raw, tensor, tile.first)
    made = {view.dtype: raw}
    seen: dict[str, Sums | Sample] = {}
    for planned in tile.tensors:
        if planned.type in made:
            continue
        part = scratch.bytes(planned.type, n_rows, quant.get(planned.type).row_bytes(tensor.n_cols))
        _quantize(engine, planned, values, part, tile.first)
        _check_encoded(engine, part, values, planned, tile.first)
        if meter and not keeps_values(view.dtype, planned.type):
            seen[planned.type] = meter.look(planned, values.rows, part, tile.first)
        made[planned.type] = part
    return _Encoded([made[t.type] for t in tile.tensors], [seen.get(t.type) for t in tile.tensors])


class _Values:
    """The float32 values of a tile, which are decoded when they are first wanted."""

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

    def all(self) -> np.ndarray:
        """Return all, float32 (n_rows, n_cols); those of a quantized tile (requantizing) are checked here."""
        if self._all is None:
            floats = self._scratch.floats(len(self.raw), self._tensor.n_cols)
            self._decode(self.raw, floats)
            if quant.get(self.dtype).block_size > 1 and (view := self._tensor.view):
                _check_finite(self._engine, floats.view(np.uint8), "F32", view, self._tensor, self._first_row)
            self._all = floats
        return self._all

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of some rows of the tile, float32 (len(rows), n_cols)."""
        if self._all is not None:
            return np.take(self._all, rows, axis=0)
        floats = np.empty((len(rows), self._tensor.n_cols), np.float32)
        self._decode(self.raw[rows], floats)
        return floats

    def _decode(self, raw: np.ndarray, floats: np.ndarray) -> None:
        kind = quant.get(self.dtype)
        if decode := self._engine.decoder(kind):
            decode(raw, floats)
        elif kind.block_size == 1:
            self._reader.decode(self.dtype, raw, floats)
        else:
            kind.dequantize_rows(raw, floats)


def _quantize(engine: quant.Engine, tensor: PlannedTensor, values: _Values, out: np.ndarray, first_row: int) -> None:
    """Quantize rows of a tensor; those of each of its matrices have their own importance."""
    kind = quant.get(tensor.type)
    if tensor.importance is None:
        if values.dtype == "BF16" and (from_bf16 := engine.from_bf16(kind)):
            from_bf16(values.raw.view(np.uint16), out)
        else:
            engine.quantize_rows(kind, values.all(), out)
        return
    floats = values.all()
    start, height = 0, tensor.shape[-2]
    while start < len(floats):
        matrix, row = divmod(first_row + start, height)
        stop = min(len(floats), start + height - row)
        engine.quantize_rows(kind, floats[start:stop], out[start:stop], tensor.importance[matrix])
        start = stop


def _check_finite(
    engine: quant.Engine, raw: np.ndarray, dtype: str, view: View, tensor: PlannedTensor, first_row: int
) -> None:
    """Refuse NaN and Inf by their exponent bits, before decoding."""
    unsigned, mask, limit = _NOT_FINITE[dtype]
    kind = quant.get(dtype)
    is_packed = kind.block_size > 1
    bits = raw.reshape(len(raw), -1, kind.type_size)[..., 0] if is_packed else raw.view(unsigned)
    largest = int(bits.max(initial=0)) if is_packed else engine.largest_magnitude(bits)
    if largest >= limit:
        magnitude = bits & unsigned(mask)
        row, column = (int(i) for i in np.argwhere(magnitude >= limit)[0])
        place = f"row {first_row + row}, column {column * kind.block_size} of {tensor.name}"
        raise FormatError(
            "a weight is NaN or Inf",
            where=", ".join(f"{s.path.name}, tensor {s.name}" for s in view.sources[:1]) or tensor.name,
            expected="finite weights",
            found=f"bits {int(bits[row, column]):#x} in {place}",
            hint="the checkpoint is damaged or its training diverged; download it again or take another one",
        )


def _check_encoded(
    engine: quant.Engine, part: np.ndarray, values: _Values, tensor: PlannedTensor, first_row: int
) -> None:
    """Refuse weights or scales that float16 cannot hold, as llama-quantize's check of rows does."""
    kind = quant.get(tensor.type)
    if kind.name == "F16":
        halves = part.view(np.uint16)
        if engine.largest_magnitude(halves) >= 0x7C00:
            infinite = (halves & np.uint16(0x7FFF)) >= np.uint16(0x7C00)
            row, column = (int(i) for i in np.argwhere(infinite)[0])
            raise FormatError(
                "a weight is too large for float16",
                where=f"tensor {tensor.name}, row {first_row + row}, column {column}",
                expected="at most 65504 in magnitude",
                found=float(values.all()[row, column]),
                hint="use BF16 or F32 instead",
            )
    if engine.has_bad_scale(kind, part) and (place := kind.bad_scale(part)):
        row, column = place[0], place[1] * kind.block_size
        block = values.all()[row, column : column + kind.block_size]
        raise FormatError(
            f"weights are too large for {kind.name}: a scale does not fit into float16",
            where=f"tensor {tensor.name}, row {first_row + row}, columns {column} to {column + kind.block_size - 1}",
            expected="scales of at most 65504 in magnitude",
            found=f"weights up to {float(np.abs(block).max()):g}",
            hint="use BF16 or F32 instead; are these weights meant?",
        )
