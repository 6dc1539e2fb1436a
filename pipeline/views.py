"""Output tensors as expressions over source tensors: what a row of the output is made of, without reading anything.

A view is a frozen value; a plan can be printed and compared.  Only `read` touches weights: any rows, any columns, into
the caller's buffer, so that every tensor streams in tiles.  Bytes stay in the source's own type until a view has to
compute; then they are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError
from pipeline.types import Shape, SourceTensor, Tile, View

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

Floats = npt.NDArray[np.float32]
RowNumbers = npt.NDArray[np.int64]


def count_rows(shape: Shape) -> int:
    """Return how many rows a row-major *shape* has; one or no dimension is one row."""
    n = 1
    for d in shape[:-1]:
        n *= d
    return n


def item_bytes(dtype: str) -> int:
    """Return the bytes of one element.

    Raises:
        FormatError: if *dtype* has no elements of its own (it is packed in blocks).
    """
    if dtype not in ITEM_BYTES:
        raise FormatError(
            "elements of this type cannot be moved one by one", expected=" or ".join(ITEM_BYTES), found=dtype
        )
    return ITEM_BYTES[dtype]


class RowReader(Protocol):
    """What a view reads with (checkpoint.TensorReader)."""

    def read_raw_rows(self, tensor: SourceTensor, rows: RowNumbers, out: Tile) -> None:
        """Fill *out*, uint8 (n_rows, row_bytes), with whole rows."""

    def read_raw_pieces(self, tensor: SourceTensor, rows: RowNumbers, start: int, out: Tile) -> None:
        """Fill *out*, uint8 (n_rows, n_bytes), with the bytes from *start* on of each row."""

    def decode(self, dtype: str, raw: Tile, out: Floats) -> None:
        """Decode raw rows to float32."""


@dataclass(frozen=True)
class Stored:
    """A source tensor as it stands."""

    tensor: SourceTensor

    @property
    def shape(self) -> Shape:
        """The tensor's own shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """The tensor's own type."""
        return self.tensor.dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The tensor."""
        return (self.tensor,)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read from the file; see `View.read`."""
        first, stop, _ = columns.indices(self.shape[-1] if self.shape else 1)
        if first == 0 and stop == (self.shape[-1] if self.shape else 1):
            reader.read_raw_rows(self.tensor, rows, out)
        else:
            reader.read_raw_pieces(self.tensor, rows, first * item_bytes(self.dtype), out)


def view_of(tensor: SourceTensor) -> View:
    """Return the view that gives the values of *tensor*: its own, or the tensor as it stands."""
    return tensor.view or Stored(tensor)


@dataclass(frozen=True)
class Constant:
    """Float32 values that were computed from config.json: *values* fill *shape* in row-major order."""

    shape: Shape
    values: tuple[float, ...]
    dtype: str = "F32"
    sources: tuple[SourceTensor, ...] = ()

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:  # noqa: ARG002
        """Give the values; see `View.read`."""
        table = np.array(self.values, np.float32).reshape(count_rows(self.shape), -1)
        out[...] = np.ascontiguousarray(table[rows, columns]).view(np.uint8)


class RowIndex(Protocol):
    """Where each output row comes from; a frozen value."""

    def __call__(self, rows: RowNumbers) -> RowNumbers:
        """Give the input row of each output row."""


@dataclass(frozen=True)
class _Over:
    """A view over one other: its type and its sources are what lies underneath."""

    view: View

    @property
    def dtype(self) -> str:
        """The type underneath: values move as they are."""
        return self.view.dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """What lies underneath."""
        return self.view.sources


@dataclass(frozen=True)
class Rows(_Over):
    """Rows of *view* in another order or selection, as *index* says; of a vector, its elements."""

    shape: Shape
    index: RowIndex

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read the rows from where they are; see `View.read`."""
        if len(self.shape) > 1:
            self.view.read(reader, self.index(rows), columns, out)
            return
        item = item_bytes(self.dtype)
        whole = np.empty((1, self.view.shape[-1] * item), np.uint8)  # a vector is small
        self.view.read(reader, np.zeros(1, np.int64), slice(None), whole)
        wanted = np.arange(self.shape[-1], dtype=np.int64)[columns]
        out[...] = whole.reshape(-1, item)[self.index(wanted)].reshape(1, -1)


@dataclass(frozen=True)
class Joined:
    """Several views one below the other; their rows follow each other, *shape* says how they are to be seen."""

    parts: tuple[View, ...]
    shape: Shape

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.dtype != self.parts[0].dtype or part.shape[-1] != self.parts[0].shape[-1]:
                raise FormatError(
                    "tensors that belong together differ",
                    where=part.sources[0].name if part.sources else None,
                    expected=f"{self.parts[0].dtype} with {self.parts[0].shape[-1]} columns",
                    found=f"{part.dtype} with {part.shape[-1]} columns",
                )

    @property
    def dtype(self) -> str:
        """The type that all parts have."""
        return self.parts[0].dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """What lies underneath, part by part."""
        return tuple(source for part in self.parts for source in part.sources)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read each row from its part; see `View.read`."""
        if len(self.shape) == 1:
            self._read_vector(reader, columns, out)
            return
        ends = np.cumsum([count_rows(part.shape) for part in self.parts])
        owner = np.searchsorted(ends, rows, side="right")
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            before = int(ends[number]) - count_rows(self.parts[number].shape)
            if len(mine) == mine[-1] - mine[0] + 1:
                self.parts[number].read(reader, rows[mine] - before, columns, out[mine[0] : mine[-1] + 1])
            else:
                piece = np.empty((len(mine), out.shape[1]), np.uint8)
                self.parts[number].read(reader, rows[mine] - before, columns, piece)
                out[mine] = piece

    def _read_vector(self, reader: RowReader, columns: slice, out: Tile) -> None:
        item = item_bytes(self.dtype)
        whole = np.empty(self.shape[0] * item, np.uint8)
        at = 0
        for part in self.parts:
            size = part.shape[-1] * item
            part.read(reader, np.zeros(1, np.int64), slice(None), whole[at : at + size].reshape(1, -1))
            at += size
        out[...] = whole.reshape(-1, item)[columns].reshape(1, -1)


@dataclass(frozen=True)
class Transposed(_Over):
    """The last two dimensions of *view* swapped; read in bands of columns."""

    @property
    def shape(self) -> Shape:
        """The swapped shape."""
        *outer, n_rows, n_cols = self.view.shape
        return (*outer, n_cols, n_rows)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read a band of the source's columns, matrix by matrix; see `View.read`."""
        n_rows, n_cols = self.shape[-2:]  # of the output; the source has n_cols rows of n_rows columns
        item = item_bytes(self.dtype)
        wanted = np.arange(n_cols, dtype=np.int64)[columns]
        result = out.reshape(len(rows), len(wanted), item)
        matrix, inner = np.divmod(rows, n_rows)
        for number in np.unique(matrix):
            mine = np.flatnonzero(matrix == number)
            first, stop = int(inner[mine].min()), int(inner[mine].max()) + 1
            band = np.empty((len(wanted), (stop - first) * item), np.uint8)
            self.view.read(reader, wanted + number * n_cols, slice(first, stop), band)
            result[mine] = band.reshape(len(wanted), -1, item).swapaxes(0, 1)[inner[mine] - first]


@dataclass(frozen=True)
class Shaped(_Over):
    """*view* seen in another shape with rows of the same length: outer dimensions merged, split or dropped."""

    shape: Shape

    def __post_init__(self) -> None:
        same = self.shape[-1] == self.view.shape[-1] and count_rows(self.shape) == count_rows(self.view.shape)
        if not same:
            raise FormatError("a tensor has another shape than expected", expected=self.shape, found=self.view.shape)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read the same rows; see `View.read`."""
        self.view.read(reader, rows, columns, out)


@dataclass(frozen=True)
class Mxfp4:
    """Blocks of 16 bytes and their scales, two tensors of a checkpoint, as rows of ggml's MXFP4: nothing is rounded.

    transformers has elements 2j and 2j + 1 of a block in byte j, ggml elements j and j + 16; a block's scale stands
    before it.  *blocks* has the bytes of a row as its last dimension, *scales* one byte for each block.
    """

    blocks: SourceTensor
    scales: SourceTensor
    dtype: str = "MXFP4"

    def __post_init__(self) -> None:
        expected = (*self.scales.shape[:-1], 16 * self.scales.shape[-1])
        found = (self.blocks.dtype, self.scales.dtype, self.blocks.shape)
        if found != ("U8", "U8", expected):
            raise FormatError("blocks and scales do not fit", expected=("U8", "U8", expected), found=found)

    @property
    def shape(self) -> Shape:
        """The shape in elements."""
        return (*self.scales.shape[:-1], 32 * self.scales.shape[-1])

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """Both tensors."""
        return (self.blocks, self.scales)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read whole rows and repack them; see `View.read`."""
        n_blocks = self.scales.shape[-1]
        if out.shape[1] != 17 * n_blocks or columns.indices(self.shape[-1])[0]:
            raise FormatError("rows in blocks cannot be cut", where=self.blocks.name, found=columns)
        packed = np.empty((len(rows), n_blocks * 16), np.uint8)
        scales = np.empty((len(rows), n_blocks), np.uint8)
        reader.read_raw_rows(self.blocks, rows, packed)
        reader.read_raw_rows(self.scales, rows, scales)
        pairs = packed.reshape(len(rows), n_blocks, 2, 8)  # the first and the second half of each block
        target = out.reshape(len(rows), n_blocks, 17)
        target[..., 0] = scales
        target[..., 1::2] = (pairs[:, :, 0] & np.uint8(15)) | (pairs[:, :, 1] << np.uint8(4))
        target[..., 2::2] = (pairs[:, :, 0] >> np.uint8(4)) | (pairs[:, :, 1] & np.uint8(240))


@dataclass(frozen=True)
class Folded(_Over):
    """A vector seen as a matrix, row after row; small, so it is read whole."""

    shape: Shape

    def __post_init__(self) -> None:
        if len(self.view.shape) != 1 or count_rows(self.shape) * self.shape[-1] != self.view.shape[0]:
            raise FormatError("a vector has another length than expected", expected=self.shape, found=self.view.shape)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read the vector and pick; see `View.read`."""
        item = item_bytes(self.dtype)
        whole = np.empty((1, self.view.shape[0] * item), np.uint8)
        self.view.read(reader, np.zeros(1, np.int64), slice(None), whole)
        out[...] = whole.reshape(count_rows(self.shape), -1, item)[rows, columns].reshape(out.shape)


@dataclass(frozen=True)
class Computed(_Over):
    """Float32 values of *view*, changed element by element by *function*, which works in place on (n_rows, n_cols)."""

    function: Callable[[Floats], None]

    @property
    def shape(self) -> Shape:
        """The shape underneath."""
        return self.view.shape

    @property
    def dtype(self) -> str:
        """Computed values are float32."""
        return "F32"

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read, decode and compute; see `View.read`."""
        raw = np.empty((out.shape[0], out.shape[1] // 4 * item_bytes(self.view.dtype)), np.uint8)
        self.view.read(reader, rows, columns, raw)
        values = out.view(np.float32)
        reader.decode(self.view.dtype, raw, values)
        self.function(values)
