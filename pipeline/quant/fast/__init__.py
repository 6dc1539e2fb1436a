"""The compiled engine: the bytes of the NumPy kernels, several times as fast, where the extra `fast` is installed.

Each module without an underscore writes the code of one type as a `KERNEL`; types without one go NumPy's way.  The code
is compiled when a type is first wanted and kept in the cache folder.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np

from pipeline import discover
from pipeline.quant._base import F32, SCRATCH_BYTES, U8, BlockType
from pipeline.quant.fast import _compile
from pipeline.quant.fast._compile import Processor, host
from pipeline.quant.fast._kernel import Kernel

__all__ = ["FastEngine", "Processor", "host", "kernels"]


# What LLVM takes, mostly pages of its own program: to bring compiled code into memory, and to compile.
_LINK_BYTES, _COMPILE_BYTES = 14_000_000, 44_000_000


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

    def __init__(self, processor: Processor | None = None, folder: Path | None = None) -> None:
        self.processor = processor or host()
        self._folder = folder
        self._functions: dict[str, _compile.Function] = {}
        self._lock = threading.Lock()

    def memory_bytes(self, kinds: Collection[str], threads: int) -> int:
        """Estimate what LLVM takes when it begins to work, and the scratch memory of types that go NumPy's way."""
        known, others = set(kinds) & set(kernels()), set(kinds) - set(kernels()) - {"F32"}
        llvm = max((_LINK_BYTES if self.is_compiled(name) else _COMPILE_BYTES for name in known), default=0)
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
        with self._lock:
            label = self._label(kind.name, weighted=weighted)
            if label not in self._functions:
                self._functions[label] = _compile.load(label, build, self.processor, self._folder)
            function = self._functions[label]
        _call(function, kind, x, out, importance if weighted else None, self.processor.lanes)

    def is_compiled(self, name: str) -> bool:
        """Say whether the kernel of type *name* need not be compiled any more."""
        return _compile.is_cached(self._label(name, weighted=False), self.processor, self._folder)

    @staticmethod
    def _label(name: str, *, weighted: bool) -> str:
        return f"{name}-weighted" if weighted else name


def _call(function: _compile.Function, kind: BlockType, x: F32, out: U8, importance: F32 | None, lanes: int) -> None:
    """Run a kernel; fewer blocks than lanes are filled up, since it works on full tiles only."""
    n_blocks = x.size // kind.block_size
    if n_blocks < lanes:
        more, padded = np.zeros(lanes * kind.block_size, np.float32), np.empty(lanes * kind.type_size, np.uint8)
        more[: x.size] = x.reshape(-1)
    else:
        more, padded = x, out
    weights = importance.ctypes.data if importance is not None else 0
    per_row = x.shape[1] // kind.block_size
    function(more.ctypes.data, weights, padded.ctypes.data, max(n_blocks, lanes), per_row)
    if padded is not out:
        out.reshape(-1)[...] = padded[: out.size]
