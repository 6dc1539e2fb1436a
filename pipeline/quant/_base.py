"""What every tensor type offers: rows of float32 in, rows of blocks out, and back.

A type is a `BlockType`: it knows its ggml name and id, how many elements and bytes a block has, and converts blocks.
Rows are cut into tiles of `tile_blocks` blocks, so that a kernel's intermediate arrays stay in the processor's cache
and its scratch memory does not grow with the tensor.  No result depends on where the cuts fall.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import FormatError, UnsupportedError, UsageError

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
Index = NDArray[np.intp]
Array = NDArray[Any]
Take = Callable[[tuple[int, ...], DTypeLike], Array]

SCRATCH_BYTES = 4 << 20

# Where NumPy's loops over rows of a few thousand elements, with one more value for each row, are fastest: with its own
# default, 8192, they take half as long again.
_LOOP_ELEMENTS = 512
_HUGE_PAGE = 2 << 20


class Layout(Protocol):
    """The scratch arrays of one kernel for *n* blocks, made by calling *take* for each."""

    def __init__(self, take: Take, n: int) -> None: ...


L = TypeVar("L", bound=Layout)


class _Workspace(threading.local):
    """Scratch memory of one thread: one buffer, and the arrays that kernels lay over it.

    Kernels run one after another in a thread and keep nothing between calls, so all layouts share the buffer.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._layouts: dict[tuple[type[Any], int], Any] = {}

    @property
    def n_bytes(self) -> int:
        """Return the size of this thread's buffer."""
        return self._buffer.nbytes

    def get(self, layout: type[L], n: int) -> L:
        """Return *layout* for *n* blocks; the arrays' contents are undefined."""
        found = self._layouts.get((layout, n))
        if found is None:
            if len(self._layouts) >= 32:
                self._layouts.clear()
            found = self._layouts[layout, n] = layout(self._carver(), n)
        return cast(L, found)

    def _carver(self) -> Take:
        if not self._buffer.size:
            # From the start of a huge page on, which NumPy asks for where there is that much.
            start = -(whole := np.empty(SCRATCH_BYTES + _HUGE_PAGE, np.uint8)).ctypes.data % _HUGE_PAGE
            self._buffer = whole[start : start + SCRATCH_BYTES]
        buffer, used = self._buffer, 0

        def take(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            nonlocal used
            n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            part = buffer[used : used + n_bytes]
            used += -(-n_bytes // 64) * 64
            return part.view(dtype).reshape(shape)

        return take


workspace = _Workspace()


class Weights(NamedTuple):
    """What an importance matrix says of a tile of n blocks.

    *importance*, (n, block_size), is that of each element's column; *row_mean*, (n,), the mean square of the row that
    each block is a part of, for types that weigh rows; *place*, (n,), the number of the block in its row.
    """

    importance: F32
    row_mean: F32
    place: Index

    def at(self, blocks: Index) -> Weights:
        """Return what it says of some blocks."""
        row_mean = self.row_mean[blocks] if len(self.row_mean) else self.row_mean
        return Weights(self.importance[blocks], row_mean, self.place[blocks])


def row_means(x: F32) -> F32:
    """Return the mean square of each row of *x*, (n_rows, n_cols), added in the order of the elements as in C."""
    n_rows, n_cols = x.shape
    step = max(1, SCRATCH_BYTES // 4 // max(1, n_cols))
    means = np.empty(n_rows, np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, n_rows, step):
            rows = x[start : start + step]
            means[start : start + step] = np.add.accumulate(rows * rows, axis=1)[:, -1] / np.float32(n_cols)
    return means


class _Weighing:
    """Hands out the weights of tiles of *x*, (n_rows, n_cols)."""

    def __init__(self, kind: BlockType, x: F32, importance: F32) -> None:
        self._importance = importance.reshape(-1, kind.block_size)
        self._means = row_means(x) if kind.weighs_rows else np.empty(0, np.float32)

    def of(self, tile: slice) -> Weights:
        """Return the weights of some blocks."""
        row, block = np.divmod(np.arange(tile.start, tile.stop), len(self._importance))
        means = self._means[row] if len(self._means) else self._means
        return Weights(np.take(self._importance, block, axis=0), means, block)


def _tiles(n_blocks: int, most: int) -> Iterator[slice]:
    """Cut *n_blocks* into tiles of nearly the same size, *most* at most."""
    n_tiles = -(-n_blocks // most)
    for i in range(n_tiles):
        yield slice(i * n_blocks // n_tiles, (i + 1) * n_blocks // n_tiles)


class BlockType(ABC):
    """One ggml tensor type.

    *name* is ggml's name in upper case ("Q4_K"), *id* the value of `enum ggml_type`, *block_size* the elements and
    *type_size* the bytes of a block, *tile_blocks* how many blocks a kernel is given at once.  *is_weighted* says
    whether an importance matrix changes the bytes; *weighs_rows* that the mean square of a whole row enters them.
    *half_scales* are the bytes of a block at which its float16 scales begin.  *keeps_zero_sign* says that a block of
    zeros shows whether they are negative.
    """

    name: ClassVar[str]
    id: ClassVar[int]
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    tile_blocks: ClassVar[int]
    is_weighted: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False
    half_scales: ClassVar[tuple[int, ...]] = (0,)
    keeps_zero_sign: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}: {self.type_size} bytes for {self.block_size} elements>"

    def row_bytes(self, n_cols: int) -> int:
        """Return the size in bytes of a row of *n_cols* elements.

        Raises:
            FormatError: if *n_cols* is not a multiple of the block size.
        """
        if n_cols % self.block_size:
            raise FormatError(
                f"a row cannot be cut into blocks of type {self.name}",
                expected=f"a multiple of {self.block_size} columns",
                found=f"{n_cols} columns",
            )
        return n_cols // self.block_size * self.type_size

    def require(self) -> None:  # noqa: B027 - most types need nothing
        """Refuse a type whose encoder is not on this machine.

        Raises:
            ToolError: saying how to get it.
        """

    def quantize_rows(self, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Quantize *x*, float32 (n_rows, n_cols), into *out*, uint8 (n_rows, row_bytes), both C-contiguous.

        The bytes are those of `ggml_quantize_chunk`.  *importance*, float32 (n_cols,), weighs the columns as its
        argument imatrix does; types that are not weighted ignore it, as there.

        Raises:
            FormatError: if a row cannot be cut into blocks.
            UsageError: if an array has another type, shape or memory order.
        """
        self.check(x, out, importance)
        blocks, data = x.reshape(-1, self.block_size), out.reshape(-1, self.type_size)
        is_weighted = importance is not None and self.is_weighted and len(blocks) > 0
        with np.errstate(all="ignore"):
            np.setbufsize(_LOOP_ELEMENTS)  # until the end of this block, like what is ignored
            weigh = _Weighing(self, x, importance) if is_weighted and importance is not None else None
            for tile in _tiles(len(blocks), self.tile_blocks):
                self._quantize_tile(blocks[tile], data[tile], weigh.of(tile) if weigh else None)

    def check(self, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Refuse arguments that `quantize_rows` does not take; it says which."""
        self._check(x, out)
        if importance is not None:
            self._check_importance(x, importance)

    def check_bf16(self, x: U16, out: U8) -> None:
        """Do the same where *x* are the bits of bfloat16, uint16."""
        self._check(x, out, np.uint16)

    def dequantize_rows(self, data: U8, out: F32) -> None:
        """Expand *data*, uint8 (n_rows, row_bytes), into *out*, float32 (n_rows, n_cols), both C-contiguous.

        The values are those of ggml's `to_float`.

        Raises:
            FormatError: if a row cannot be cut into blocks.
            UsageError: if an array has another type, shape or memory order.
        """
        self._check(out, data)
        blocks, values = data.reshape(-1, self.type_size), out.reshape(-1, self.block_size)
        with np.errstate(all="ignore"):
            for start in range(0, len(blocks), self.tile_blocks):
                stop = start + self.tile_blocks
                self.dequantize_blocks(blocks[start:stop], values[start:stop])

    @property
    def has_only_half_scales(self) -> bool:
        """Whether `half_scales` is all that `bad_scale` looks at."""
        return type(self)._bad_scales is BlockType._bad_scales

    def bad_scale(self, data: U8) -> tuple[int, int] | None:
        """Find the first block of *data*, (n_rows, row_bytes), with a scale that is not finite: its row and its place.

        Mirrors `ggml_validate_row_data`: weights so large that float16 cannot hold their scale make such a block.
        """
        bad = self._bad_scales(data.reshape(len(data), -1, self.type_size))
        if not bad.any():
            return None
        row, block = np.argwhere(bad)[0]
        return int(row), int(block)

    def _bad_scales(self, blocks: U8) -> NDArray[np.bool_]:
        """Say of each of *blocks*, (n_rows, n_blocks, type_size), whether a scale's exponent bits are all ones."""
        bad = np.zeros(blocks.shape[:2], bool)
        for offset in self.half_scales:
            bad |= blocks[..., offset + 1] & np.uint8(0x7C) == 0x7C
        return bad

    @abstractmethod
    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Quantize *x*, (n, block_size), into *out*, (n, type_size), for n up to `tile_blocks`."""

    def quantize_weighted(self, x: F32, out: U8, weights: Weights) -> None:  # noqa: ARG002 - the general form
        """Do what `quantize_blocks` does with an importance matrix; only types that are weighted are asked."""
        raise UnsupportedError(
            f"type {self.name} cannot be quantized with an importance matrix yet", hint="leave out the matrix"
        )

    @abstractmethod
    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Expand *data*, (n, type_size), into *out*, (n, block_size), for n up to `tile_blocks`."""

    def _quantize_tile(self, x: F32, out: U8, weights: Weights | None) -> None:
        """Quantize one tile; of blocks with one value all over, such as padding, those of each value only once.

        They would all take the kernels' slow paths.  An importance matrix says nothing of zeros; elsewhere the same
        value in the same columns is the same block, unless rows are weighed.
        """
        equal, others = self._equal_blocks(x)
        if not len(equal):
            self._quantize(x, out, weights)
            return
        is_zero = x[equal, 0].view(self._same) == 0
        out[equal[is_zero]] = self._zero_block if weights is None else self._weighted_zero_block
        equal = equal[~is_zero]
        if weights is not None and self.weighs_rows:
            equal, others = equal[:0], np.concatenate([others, equal])
        if len(equal):
            block = x[equal, 0].view(np.int32) + (np.int64(0) if weights is None else weights.place[equal] << 32)
            _, first, which = np.unique(block, return_index=True, return_inverse=True)
            out[equal] = self._quantized(x, equal[first], weights)[which]
        if len(others):
            out[others] = self._quantized(x, others, weights)

    def _equal_blocks(self, x: F32) -> tuple[Index, Index]:
        """Find the blocks of *x*, (n, block_size), with one value all over, if there are many; and the other ones."""
        values = x.view(self._same)
        # One value alone is no block to be found again.
        equal = (values[:, 0] == values[:, -1]).nonzero()[0] if self.block_size > 1 else np.empty(0, np.intp)
        if len(equal) < len(x) / 16:
            return equal[:0], equal[:0]
        is_equal = np.zeros(len(x), bool)
        is_equal[equal] = (values[equal] == values[equal, :1]).all(axis=1)
        return is_equal.nonzero()[0], (~is_equal).nonzero()[0]

    @cached_property
    def _zero_block(self) -> U8:
        """The bytes of a block of positive zeros."""
        return self._quantized(np.zeros((1, self.block_size), np.float32), np.array([0]), None)

    @cached_property
    def _weighted_zero_block(self) -> U8:
        """The bytes of a block of positive zeros where there is an importance matrix, whatever it says."""
        block = np.zeros((1, self.block_size), np.float32)
        weights = Weights(np.ones_like(block), np.zeros(1, np.float32), np.array([0]))
        return self._quantized(block, np.array([0]), weights)

    @property
    def _same(self) -> type[np.generic]:
        """What to compare values as: numbers, of which both zeros are equal, or bits."""
        return np.int32 if self.keeps_zero_sign else np.float32

    def _quantize(self, x: F32, out: U8, weights: Weights | None) -> None:
        if weights is None:
            self.quantize_blocks(x, out)
        else:
            self.quantize_weighted(x, out, weights)

    def _quantized(self, x: F32, at: Index, weights: Weights | None) -> U8:
        """Return the blocks *at* of a tile."""
        out = np.empty((len(at), self.type_size), np.uint8)
        self._quantize(x[at], out, weights.at(at) if weights else None)
        return out

    def _check(self, values: F32 | U16, data: U8, kind: type[np.generic] = np.float32) -> None:
        for array, dtype, what in ((values, kind, "the values"), (data, np.uint8, "the data")):
            if array.dtype != dtype or array.ndim != 2 or not array.flags.c_contiguous:
                raise UsageError(
                    f"{what} of type {self.name} do not have the form its kernel takes",
                    expected=f"a C-contiguous array of {np.dtype(dtype)} with two dimensions",
                    found=f"{array.dtype} {array.shape}, {'' if array.flags.c_contiguous else 'not '}C-contiguous",
                )
        expected = (values.shape[0], self.row_bytes(values.shape[1]))
        if data.shape != expected:
            raise UsageError(f"the data of type {self.name} has another size", expected=expected, found=data.shape)

    def _check_importance(self, values: F32, importance: F32) -> None:
        expected = values.shape[1:]
        is_sound = importance.dtype == np.float32 and importance.flags.c_contiguous
        if not is_sound or importance.shape != expected:
            raise UsageError(
                "the importance of columns does not have the form a kernel takes",
                expected=f"a C-contiguous array of float32 {expected}",
                found=f"{importance.dtype} {importance.shape}",
            )
