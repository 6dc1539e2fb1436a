"""Read tensors' bytes into the caller's buffers and decode them to float32, exactly.

Reading is `preadv` into given memory: no mapped file, whose pages would count as the process's own, and no copy.  One
call scatters consecutive rows of the file to wherever they belong, so permuted rows cost no more than straight ones.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError, PipelineError, UnsupportedError
from pipeline.types import SourceTensor

Rows = slice | range | np.ndarray
Bytes = npt.NDArray[np.uint8]

_MAX_BUFFERS = 1024  # IOV_MAX of Linux and macOS
_F16_TILE = 1 << 16  # weights; the tile's float32 values (256 KB) stay in the second-level cache between passes
_F16_KEPT = np.uint32(0x8FFF_E000).view(np.int32)  # sign, and exponent and mantissa of a half at bit 13
_F16_SCALE = np.float32(2.0**112)  # exponent bias of a float32 less that of a half: 127 - 15


class TensorReader:
    """Reads the tensors of any number of files; threads may share one.

    Files are opened when first needed and stay open until `close` or the end of the `with` block.  Before that *ready*
    is called with the file's path: it returns when the file may be read, or raises.
    """

    def __init__(self, ready: Callable[[Path], None] | None = None) -> None:
        self._ready = ready
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; the reader cannot be used afterwards."""
        with self._lock:
            self._closed = True
            while self._files:
                os.close(self._files.popitem()[1])

    def read_bytes(self, tensor: SourceTensor, start: int, out: memoryview | Bytes) -> None:
        """Fill *out*, contiguous bytes, with the tensor's data from byte *start* on.

        Raises:
            FormatError: if the file ends before, or cannot be read.
            PipelineError: if the span is not inside the tensor.
        """
        view = out.data if isinstance(out, np.ndarray) else out
        if start < 0 or start + view.nbytes > tensor.n_bytes:
            raise _misuse(tensor, f"bytes {start} to {start + view.nbytes} of {tensor.n_bytes}")
        if view.nbytes:
            self._fill(tensor, start, [view.cast("B")])

    def read_raw_rows(self, tensor: SourceTensor, rows: Rows, out: Bytes) -> None:
        """Fill *out*, uint8 of shape (n_rows, row_bytes), with the bytes of *rows* in their order.

        A tensor of one or no dimension is one row.

        Raises:
            FormatError: if the file ends before, or cannot be read.
            PipelineError: if a row is not in the tensor, or *out* has another shape.
        """
        n_rows, n_cols = rows_and_cols(tensor)
        row_bytes, odd = divmod(tensor.n_bytes, n_rows) if n_rows else (out.shape[-1], 0)
        (first, end), index = _span_or_index(rows, n_rows)
        count = end - first if index is None else len(index)
        fits = out.shape == (count, row_bytes) and out.dtype == np.uint8 and out.flags.c_contiguous
        if odd or not fits:
            raise _misuse(tensor, f"{count} rows of {row_bytes} bytes ({n_cols} columns) into {out.dtype}{out.shape}")
        if not out.size:
            return
        if index is None:
            self._fill(tensor, first * row_bytes, [out.data.cast("B")])
        else:
            self._scatter(tensor, index, out)

    def read_raw_pieces(self, tensor: SourceTensor, rows: Rows, start: int, out: Bytes) -> None:
        """Fill *out*, uint8 of shape (n_rows, n_bytes), with the bytes from *start* on of each row.

        For bands of columns: one call of the system for each row, so a band should be hundreds of bytes wide.

        Raises:
            FormatError: if the file ends before, or cannot be read.
            PipelineError: if a row or a byte is not in the tensor.
        """
        n_rows, _ = rows_and_cols(tensor)
        row_bytes = tensor.n_bytes // n_rows if n_rows else 0
        span, index = _span_or_index(rows, n_rows)
        numbers = range(*span) if index is None else index.tolist()
        if out.ndim != 2 or len(out) != len(numbers) or not 0 <= start <= start + out.shape[1] <= row_bytes:
            raise _misuse(tensor, f"bytes {start} on of {len(numbers)} rows of {row_bytes} bytes into {out.shape}")
        for place, row in enumerate(numbers):
            self._fill(tensor, row * row_bytes + start, [memoryview(out[place]).cast("B")])

    def decode(self, dtype: str, raw: Bytes, out: npt.NDArray[np.float32]) -> None:
        """Decode raw rows; see `decode_rows`."""
        decode_rows(dtype, raw, out)

    def _scatter(self, tensor: SourceTensor, index: np.ndarray, out: Bytes) -> None:
        """Read the rows *index* in file order, each run of neighbours by one call per 1024 rows."""
        order = np.argsort(index, kind="stable")
        in_file = index[order]
        cuts = np.flatnonzero(np.diff(in_file) != 1) + 1
        places = order.tolist()
        edges = [0, *cuts.tolist(), len(places)]
        row_bytes = out.shape[1]
        flat = out.data.cast("B")
        for first, last in itertools.pairwise(edges):
            for i in range(first, last, _MAX_BUFFERS):
                some = places[i : min(i + _MAX_BUFFERS, last)]
                buffers = [flat[p * row_bytes : (p + 1) * row_bytes] for p in some]
                self._fill(tensor, int(in_file[i]) * row_bytes, buffers)

    def _fill(self, tensor: SourceTensor, start: int, buffers: list[memoryview]) -> None:
        """Read from byte *start* of the tensor on until all *buffers* are full."""
        at = tensor.offset + start
        fd = self._open(tensor)
        while buffers:
            try:
                n = os.preadv(fd, buffers, at)
            except OSError as e:
                raise FormatError(
                    "cannot be read", where=tensor.path, found=e.strerror or e, hint="check the disk"
                ) from e
            if n == 0:
                raise FormatError(
                    f"is cut short: {tensor.name} is not whole",
                    where=tensor.path,
                    expected=f"{tensor.offset + tensor.n_bytes:,} bytes",
                    found=f"{at:,} bytes",
                    hint="download the file again; it changed after it was opened",
                )
            at += n
            buffers = _rest(buffers, n)

    def _open(self, tensor: SourceTensor) -> int:
        # Not under the lock: others may go on reading what is open while this thread waits.
        if self._ready and tensor.path not in self._files:
            self._ready(tensor.path)
        with self._lock:
            if self._closed:
                raise _misuse(tensor, "a closed reader")
            if tensor.path not in self._files:
                try:
                    self._files[tensor.path] = os.open(tensor.path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as e:
                    raise FormatError(
                        "cannot be opened", where=tensor.path, found=e.strerror or e, hint="download the file again"
                    ) from e
            return self._files[tensor.path]


def decode_rows(dtype: str, raw: Bytes, out: npt.NDArray[np.float32]) -> None:
    """Decode the values of whole rows to float32, exactly.

    Args:
        dtype: "BF16", "F16" or "F32".
        raw: uint8 (n_rows, row_bytes), C-contiguous, as `TensorReader.read_raw_rows` fills it.
        out: float32 (n_rows, n_cols), C-contiguous.

    Raises:
        UnsupportedError: if *dtype* is another one.
        PipelineError: if the buffers do not fit each other.
    """
    if dtype not in _DECODERS:
        raise _unsupported(dtype)
    size = 4 if dtype == "F32" else 2
    if raw.size != size * out.size or not (raw.flags.c_contiguous and out.flags.c_contiguous):
        raise PipelineError("rows cannot be decoded this way", found=f"{dtype}: {raw.shape} into {out.shape}")
    _DECODERS[dtype](raw.reshape(-1), out.reshape(-1))


def rows_and_cols(tensor: SourceTensor) -> tuple[int, int]:
    """Return the tensor's (n_rows, n_cols); one or no dimension is one row."""
    if len(tensor.shape) < 2:
        return 1, tensor.shape[0] if tensor.shape else 1
    n = 1
    for d in tensor.shape[:-1]:
        n *= d
    return n, tensor.shape[-1]


def _span_or_index(rows: Rows, n_rows: int) -> tuple[tuple[int, int], np.ndarray | None]:
    """Give *rows* as (first, last + 1) where they are neighbours in order, else as an array of row numbers."""
    if isinstance(rows, slice):
        rows = range(*rows.indices(n_rows))
    if isinstance(rows, range) and rows.step == 1 and 0 <= rows.start <= rows.stop <= n_rows:
        return (rows.start, rows.stop), None
    index = np.asarray(rows)
    if not index.size:
        return (0, 0), None
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise PipelineError("rows are not a list of integers", found=f"{index.dtype}{index.shape}")
    low, high = int(index[0]), int(index[-1])
    are_neighbours = high - low == len(index) - 1 and bool((index[1:] > index[:-1]).all())
    if not are_neighbours:
        low, high = int(index.min()), int(index.max())
    if low < 0 or high >= n_rows:
        raise PipelineError("a row is not in the tensor", expected=f"0 to {n_rows - 1}", found=f"{low} to {high}")
    return ((low, high + 1), None) if are_neighbours else ((0, 0), index.astype(np.int64))


def _rest(buffers: list[memoryview], n: int) -> list[memoryview]:
    """Drop the first *n* bytes of *buffers*."""
    for i, buffer in enumerate(buffers):
        if n < buffer.nbytes:
            return [buffer[n:], *buffers[i + 1 :]]
        n -= buffer.nbytes
    return []


def _misuse(tensor: SourceTensor, found: str) -> PipelineError:
    return PipelineError(f"the tensor {tensor.name} cannot be read this way", where=tensor.path, found=found)


def _unsupported(dtype: str) -> UnsupportedError:
    return UnsupportedError(
        f"the type {dtype} is not read as weights",
        expected=" or ".join(_DECODERS),
        found=dtype,
        hint="take the unquantized checkpoint, or save it again in bfloat16",
    )


def _decode_f32(raw: Bytes, out: npt.NDArray[np.float32]) -> None:
    np.copyto(out, raw.view("<f4"))


def _decode_bf16(raw: Bytes, out: npt.NDArray[np.float32]) -> None:
    """Widen bfloat16 to float32: the upper half of its bits."""
    np.copyto(out, raw.view(ml_dtypes.bfloat16))


def _decode_f16(raw: Bytes, out: npt.NDArray[np.float32]) -> None:
    """Widen halves to float32 in integer steps, subnormals included; numpy's own loop takes 3 to 14 times as long.

    The half's exponent and mantissa are put at the float's place, which makes its value too small by 2**112 for normal
    and subnormal halves alike.  Infinity and NaN would become finite; a tile that has them goes numpy's way.
    """
    halves, words = raw.view("<i2"), out.view(np.int32)
    for i in range(0, len(halves), _F16_TILE):
        half, word, value = (a[i : i + _F16_TILE] for a in (halves, words, out))
        np.copyto(word, half)  # extends the sign, so bit 31 is right after the shift
        np.left_shift(word, 13, out=word)
        np.bitwise_and(word, _F16_KEPT, out=word)
        np.multiply(value, _F16_SCALE, out=value)
        if value.max() >= 65536 or value.min() <= -65536:
            np.copyto(value, half.view("<f2"))


_DECODERS: dict[str, Callable[[Bytes, npt.NDArray[np.float32]], None]] = {
    "F32": _decode_f32,
    "BF16": _decode_bf16,
    "F16": _decode_f16,
}
