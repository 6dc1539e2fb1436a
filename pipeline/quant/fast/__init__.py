"""The compiled engine: the bytes of the NumPy kernels, several times as fast, where the extra `fast` is installed.

Each module without an underscore writes the code of one type as a `KERNEL`; types without one go NumPy's way.  The code
is compiled when a type is first wanted and kept in the cache folder.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np

from pipeline import discover
from pipeline.quant._base import F32, SCRATCH_BYTES, U8, U16, Array, BlockType, row_means
from pipeline.quant._engines import Compared, Decoder, Encoder, NumpyEngine
from pipeline.quant.fast import _compile
from pipeline.quant.fast._compile import Processor, host
from pipeline.quant.fast._kernel import Build, Kernel, reading_bf16
from pipeline.quant.fast._look import MAGNITUDES, N_COMPARED, compare, largest_half, looking, sum_of_squares

__all__ = ["FastEngine", "Processor", "host", "kernels"]


_INFINITE_HALF, _INFINITE_BF16 = 0x7C00, 0x7F80  # the bits of infinity

# What LLVM takes, mostly pages of its own program: to bring compiled code into memory, to compile a kernel, and to
# compile no more than what looks for NaN.
_LINK_BYTES, _COMPILE_BYTES, _LOOK_BYTES = 14_000_000, 44_000_000, 30_000_000


@cache
def kernels() -> dict[str, Kernel]:
    """Return all kernels by the name of their type ("Q4_K")."""
    return discover.load("pipeline.quant.fast", "KERNEL")


class FastEngine:
    """Quantizes with compiled kernels; threads may share one.

    Args:
        processor: what to compile for, this machine's by default.
        folder: where compiled code is kept, the cache folder by default.
    """

    name = "fast"
    tile_elements = 1 << 19  # as bfloat16 it fits the second-level cache of a core

    def __init__(self, processor: Processor | None = None, folder: Path | None = None) -> None:
        self.processor = processor or host()
        self._folder = folder
        self._functions: dict[str, _compile.Function] = {}
        self._from_bf16: dict[str, Encoder] = {}
        self._lock = threading.Lock()

    def in_parallel(self, threads: int, n_weights: int) -> AbstractContextManager[FastEngine]:  # noqa: ARG002
        """Return this engine: its kernels run without the interpreter's lock."""
        return nullcontext(self)

    def memory_bytes(self, kinds: Collection[str], threads: int, n_weights: int) -> int:  # noqa: ARG002
        """Estimate what LLVM takes when it begins to work, and the scratch memory of types that go NumPy's way."""
        known, others = set(kinds) & set(kernels()), set(kinds) - set(kernels()) - {"F32"}
        llvm = max((_LINK_BYTES if self.is_compiled(name) else _COMPILE_BYTES for name in known), default=_LOOK_BYTES)
        return (0 if self._functions else llvm) + (threads * SCRATCH_BYTES if others else 0)

    def quantize_rows(self, kind: BlockType, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Do what `BlockType.quantize_rows` does."""
        weighted = importance is not None and kind.is_weighted
        kernel = kernels().get(kind.name)
        build = None if kernel is None else kernel.build_weighted if weighted else kernel.build
        if build is None:
            kind.quantize_rows(x, out, importance)
            return
        kind.check(x, out, importance)
        function = self._function(self._label(kind.name, weighted=weighted), build)
        weights = None
        if weighted and importance is not None:
            weights = importance, self._row_means(x) if kind.weighs_rows else importance
        self._call(function, (x, kind.block_size), (out, kind.type_size), weights, x.shape[1] // kind.block_size)

    def decoder(self, kind: BlockType) -> Decoder | None:
        """Return what does as `BlockType.dequantize_rows`, if it is compiled."""
        kernel = kernels().get(kind.name)
        build = None if kernel is None else kernel.build_decode
        if build is None:
            return None
        function = self._function(f"{kind.name}-decode", build)

        def decode(data: U8, out: F32) -> None:
            kind.check(out, data)
            self._call(function, (data, kind.type_size), (out, kind.block_size))

        return decode

    def reads_bf16(self, kind: BlockType) -> bool:
        """Say whether `from_bf16` has something; any kernel can."""
        return kind.name in kernels()

    def from_bf16(self, kind: BlockType) -> Encoder | None:
        """Return what quantizes bfloat16 as `quantize_rows` does their values.

        It looks at the numbers and at the scales itself: one call takes less than three, after each of which Python's
        own memory has to come back into the cache.
        """
        kernel = kernels().get(kind.name)
        if kernel is None or kind.name in self._from_bf16:
            return self._from_bf16.get(kind.name)
        sees_all = kind.has_only_half_scales and kind.block_size > 1  # of plain types, each number is to be looked at
        build = looking(reading_bf16(kernel.build), kind.block_size, kind.type_size, kind.half_scales)
        function = self._function(f"{kind.name}-from-bf16", build)

        def encode(x: U16, out: U8) -> bool:
            kind.check_bf16(x, out)
            found, blocks_per_row = np.zeros(2, np.uint32), x.shape[1] // kind.block_size
            self._call(function, (x, kind.block_size), (out, kind.type_size), (found, found), blocks_per_row)
            number, scale = found.tolist()
            return sees_all and number < _INFINITE_BF16 and scale < _INFINITE_HALF

        self._from_bf16[kind.name] = encode
        return encode

    def has_bad_scale(self, kind: BlockType, data: U8) -> bool:
        """Say whether `kind.bad_scale` finds a block in *data*; where no scale can be bad, none is looked at."""
        if not kind.has_only_half_scales:
            return kind.bad_scale(data) is not None
        found, start = ctypes.c_uint32(), data.ctypes.data
        function = self._function("magnitude-of-half", largest_half)
        for offset in kind.half_scales:
            n_blocks = data.size // kind.type_size
            function(start + offset, 0, 0, ctypes.addressof(found), n_blocks, kind.type_size)
        return found.value >= _INFINITE_HALF

    def compare(self, x: F32, y: F32) -> Compared:
        """Return the sums of x*x, y*y, x*y and (x-y)*(x-y), and the largest |x-y|."""
        lanes = self.processor.lanes
        n = x.size // lanes
        lane_sums = np.empty((N_COMPARED, lanes))
        function = self._function("compare", compare)
        function(x.ctypes.data, y.ctypes.data, 0, lane_sums.ctypes.data, n, 1)
        xx, yy, xy, square = lane_sums[:-1].sum(axis=1).tolist()
        found = Compared(xx, yy, xy, square, float(lane_sums[-1].max()))
        return found.joined(NumpyEngine().compare(x[n * lanes :], y[n * lanes :])) if x.size % lanes else found

    def largest_magnitude(self, words: Array) -> int:
        """Return the largest of *words*, uint16 or uint32, C-contiguous, without their uppermost bits."""
        found, size = ctypes.c_uint32(), words.dtype.itemsize
        if words.size < self.processor.lanes:
            return NumpyEngine().largest_magnitude(words)
        function = self._function(f"magnitude-{size}", MAGNITUDES[size])
        function(words.ctypes.data, 0, 0, ctypes.addressof(found), words.size, 1)
        return found.value

    def _row_means(self, x: F32) -> F32:
        """Return the mean square of each row of *x*, (n_rows, n_cols)."""
        n_rows, n_cols = x.shape
        if n_rows < self.processor.lanes:
            return row_means(x)
        sums = np.empty(n_rows, np.float32)
        self._function("squares", sum_of_squares)(x.ctypes.data, 0, 0, sums.ctypes.data, n_rows, n_cols)
        return sums / np.float32(n_cols)

    def _function(self, label: str, build: Build) -> _compile.Function:
        if label not in self._functions:
            with self._lock:
                if label not in self._functions:
                    self._functions[label] = _compile.load(label, build, self.processor, self._folder)
        return self._functions[label]

    def _call(
        self,
        function: _compile.Function,
        source: tuple[Array, int],
        target: tuple[Array, int],
        weights: tuple[Array, Array] | None = None,
        blocks_per_row: int = 1,
    ) -> None:
        """Run a kernel on arrays, each with the items of one block; fewer blocks than lanes are filled up."""
        (x, x_items), (out, out_items) = source, target
        n_blocks, lanes = x.size // x_items, self.processor.lanes
        more_addresses = (0, 0) if weights is None else tuple(array.ctypes.data for array in weights)
        if n_blocks >= lanes:
            function(x.ctypes.data, *more_addresses, out.ctypes.data, n_blocks, blocks_per_row)
            return
        more, padded = np.zeros(lanes * x_items, x.dtype), np.empty(lanes * out_items, out.dtype)
        more[: x.size] = x.reshape(-1)
        function(more.ctypes.data, *more_addresses, padded.ctypes.data, lanes, blocks_per_row)
        out.reshape(-1)[...] = padded[: out.size]

    def is_compiled(self, name: str) -> bool:
        """Say whether the kernel of type *name* need not be compiled any more."""
        labels = self._label(name, weighted=False), f"{name}-from-bf16"
        return any(_compile.is_cached(label, self.processor, self._folder) for label in labels)

    @staticmethod
    def _label(name: str, *, weighted: bool) -> str:
        return f"{name}-weighted" if weighted else name
