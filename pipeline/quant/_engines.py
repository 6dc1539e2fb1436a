"""Who does the work: the NumPy kernels, or the compiled ones of the extra `fast`.  Both give the same bytes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from types import ModuleType
from typing import Final, NamedTuple, Protocol

import numpy as np

from pipeline.errors import ToolError, UsageError
from pipeline.quant._base import F32, SCRATCH_BYTES, U8, U16, Array, BlockType, Take, workspace
from pipeline.quant._native import NativeType
from pipeline.quant._processes import Processes, processes

Decoder = Callable[[U8, F32], None]
Encoder = Callable[[U16, U8], bool]

AUTO: Final = "auto"
NAMES: Final = ("numpy", "fast")
_PIECE: Final = 1 << 15  # numbers compared at once: three float64 arrays of it stay in the cache of a core
_OLDEST_LLVMLITE: Final = (0, 45)

_PRECISIONS: Final = frozenset({"F32", "F16", "BF16"})

# One process cannot be through with so many weights, at 50 ns, before another one has begun.
_WORTH_PROCESSES: Final = 1 << 24
_PROCESS_BYTES: Final = 28 << 20  # an interpreter with NumPy, beside the rows that it is sent

# What the compiled engine costs before it does anything, in seconds of a processor: loading LLVM, and compiling one
# type for the first time, which takes 0.05 (Q8_0) to 0.4 (Q4_K with an importance matrix).
_LOAD_SECONDS: Final = 0.15
_COMPILE_SECONDS: Final = 0.3
# What the first search of a process takes beside its scratch memory: pages of NumPy's program and of the heap.
_LOOPS_BYTES: Final = 5_000_000

# No kernel saves more on a weight, in nanoseconds, so small jobs need not load anything to know.
_MOST_NS: Final = 100


class Compared(NamedTuple):
    """Sums over pairs of numbers x and y, in float64, and the largest difference."""

    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    square: float = 0.0  # of x - y
    largest: float = 0.0  # of |x - y|

    def joined(self, other: Compared) -> Compared:
        """Return what both come to together."""
        return Compared(
            self.xx + other.xx,
            self.yy + other.yy,
            self.xy + other.xy,
            self.square + other.square,
            max(self.largest, other.largest),
        )


class Engine(Protocol):
    """Something that quantizes rows; threads may share one."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    @property
    def tile_elements(self) -> int:
        """How many elements it likes to be given at once."""

    def memory_bytes(self, kinds: Collection[str], threads: int, n_weights: int) -> int:
        """Estimate what quantizing *n_weights* to *kinds*, types by name, takes beside the rows, as far as new."""

    def in_parallel(self, threads: int, n_weights: int) -> AbstractContextManager[Engine]:
        """Return what *threads* threads had better use to quantize *n_weights*; it is there while the block runs."""

    def quantize_rows(self, kind: BlockType, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Do what `BlockType.quantize_rows` does."""

    def decoder(self, kind: BlockType) -> Decoder | None:
        """Return what does as `BlockType.dequantize_rows`, if this engine has something faster."""

    def reads_bf16(self, kind: BlockType) -> bool:
        """Say whether `from_bf16` has something, without compiling it."""

    def from_bf16(self, kind: BlockType) -> Encoder | None:
        """Return what quantizes bfloat16, uint16 (n_rows, n_cols), as `quantize_rows` does their values, if it can.

        It says whether it saw that all numbers are finite, and no scale is bad; if not, it has to be looked for.
        """

    def has_bad_scale(self, kind: BlockType, data: U8) -> bool:
        """Say whether `kind.bad_scale` finds a block in *data*, which is C-contiguous."""

    def compare(self, x: F32, y: F32) -> Compared:
        """Compare two vectors of float32, C-contiguous; how the sums are grouped is the engine's own."""

    def largest_magnitude(self, words: Array) -> int:
        """Return the largest of *words*, uint16 or uint32, C-contiguous, without their uppermost bits."""


class NumpyEngine:
    """The kernels that the types themselves bring."""

    name = "numpy"
    tile_elements = 1 << 19  # large enough that the interpreter does not count

    def memory_bytes(self, kinds: Collection[str], threads: int, n_weights: int) -> int:
        """Estimate scratch memory, of which each thread has its own, processes, and NumPy's loops.

        Conversions need none of it; rounding, as for Q8_0, takes half of the scratch, a search all and more loops.
        """
        if not set(kinds) - _PRECISIONS:
            return 0
        searches = bool(set(kinds) - _PRECISIONS - {"Q8_0"})
        scratch = SCRATCH_BYTES if searches else SCRATCH_BYTES // 2
        each = scratch + (_PROCESS_BYTES if _needs_processes(threads, n_weights) else 0)
        return threads * each + (_LOOPS_BYTES if searches else 0)

    @contextlib.contextmanager
    def in_parallel(self, threads: int, n_weights: int) -> Iterator[Engine]:
        """Yield an engine with a process for each thread, or this one where that would not pay."""
        if not _needs_processes(threads, n_weights):
            yield self
            return
        with processes(threads) as running:
            yield _InProcesses(running)

    def quantize_rows(self, kind: BlockType, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Do what `BlockType.quantize_rows` does."""
        kind.quantize_rows(x, out, importance)

    def decoder(self, kind: BlockType) -> Decoder | None:  # noqa: ARG002 - has nothing faster
        """Return None: the types' own way is NumPy's."""
        return None

    def reads_bf16(self, kind: BlockType) -> bool:  # noqa: ARG002 - its kernels take float32
        """Say no: the values have to be decoded."""
        return False

    def from_bf16(self, kind: BlockType) -> Encoder | None:  # noqa: ARG002 - its kernels take float32
        """Return None: the values have to be decoded."""
        return None

    def has_bad_scale(self, kind: BlockType, data: U8) -> bool:
        """Say whether `kind.bad_scale` finds a block in *data*."""
        return kind.bad_scale(data) is not None

    def compare(self, x: F32, y: F32) -> Compared:
        """Compare two vectors of float32, C-contiguous, by products and NumPy's own sum.

        A dot product would be a BLAS's, which adds in an order of its own, by machine and threads.
        """
        found = Compared()
        for start in range(0, x.size, _PIECE):
            found = found.joined(_compare(x[start : start + _PIECE], y[start : start + _PIECE]))
        return found

    def largest_magnitude(self, words: Array) -> int:
        """Return the largest of *words*, uint16 or uint32, C-contiguous, without their uppermost bits."""
        unsigned = words.dtype.type
        return int((words & unsigned(np.iinfo(unsigned).max >> 1)).max(initial=0))


class _InProcesses(NumpyEngine):
    """The same kernels in other processes; conversions and libggml's functions do not hold the lock for long."""

    def __init__(self, running: Processes) -> None:
        self._running = running

    def quantize_rows(self, kind: BlockType, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Do what `BlockType.quantize_rows` does."""
        if kind.name in _PRECISIONS or isinstance(kind, NativeType):
            kind.quantize_rows(x, out, importance)
        else:
            self._running.quantize_rows(kind, x, out, importance)


def _needs_processes(threads: int, n_weights: int) -> bool:
    """Whether the processes are sooner through than threads, which hinder each other."""
    return threads > 1 and n_weights >= _WORTH_PROCESSES


class _Pair:
    """Scratch of a comparison."""

    def __init__(self, take: Take, n: int) -> None:
        self.a, self.b, self.product = (take((n,), np.float64) for _ in range(3))


def _compare(x: F32, y: F32) -> Compared:
    pair = workspace.get(_Pair, x.size)
    np.copyto(pair.a, x)  # once and whole: a product that converts its factors on the way takes twice as long
    np.copyto(pair.b, y)

    def total(p: Array, q: Array) -> float:
        return float(np.add.reduce(np.multiply(p, q, out=pair.product)))

    xx, yy, xy = total(pair.a, pair.a), total(pair.b, pair.b), total(pair.a, pair.b)
    pair.a -= pair.b
    return Compared(xx, yy, xy, total(pair.a, pair.a), max(float(pair.a.max()), -float(pair.a.min())))


def check_engine(name: str) -> None:
    """Refuse an engine that there is not.

    Raises:
        UsageError: if none has this *name*.
        ToolError: if it is not installed.
    """
    if name not in (AUTO, *NAMES):
        raise UsageError("no such engine", expected=", ".join((AUTO, *NAMES)), found=name)
    if name == "fast" and not _is_installed():
        raise ToolError(
            "the compiled engine is not installed", hint="pip install 'gguf-pipeline[fast]', or take --engine numpy"
        )


def get_engine(name: str, work: Mapping[str, int]) -> Engine:
    """Return the engine called *name*; "auto" means the one that is through with *work* first.

    Where the compiled one cannot be loaded, "auto" is NumPy's; `fallback_note` says so.

    Args:
        name: "auto", "numpy" or "fast".
        work: how many weights become each type, by the type's name.

    Raises:
        UsageError: if no engine has this name.
        ToolError: if it is not installed, or cannot be loaded.
    """
    check_engine(name)
    if name == "numpy" or (name == AUTO and not _is_worth_it(work)):
        return _numpy()
    return _fast()


def describe_fast() -> tuple[bool, str]:
    """Say whether the compiled engine is there, and what it compiles for."""
    if not _is_installed():
        return False, "not installed; NumPy quantizes, with the same bytes"
    try:
        processor = _package().host()
    except ToolError as error:
        return False, f"{error.what}: {error.found}; NumPy quantizes, with the same bytes"
    return True, f"for {processor.cpu}, {processor.name}"


@cache
def _is_installed() -> bool:
    """Look for LLVM without loading it; an older one, which another program may have brought, is none.

    What cannot even say its version counts as installed, whatever it raises: `_package` tells what is wrong with it.
    """
    try:
        from llvmlite import __version__ as version
    except ModuleNotFoundError as error:
        return error.name != "llvmlite"  # it may miss something itself
    except Exception:  # a broken package may raise anything
        return True
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _OLDEST_LLVMLITE


def _package() -> ModuleType:
    """Load the compiled engine.

    Raises:
        ToolError: if what is installed cannot be loaded.
    """
    found = _loaded()
    if isinstance(found, ToolError):
        raise found
    return found


@cache
def _loaded() -> ModuleType | ToolError:
    """Load the compiled engine, once; what a broken package raises may be anything."""
    try:
        from pipeline.quant import fast
    except Exception as error:
        return ToolError(
            "LLVM is installed but cannot be loaded",
            where="llvmlite",
            found=f"{type(error).__name__}: {error}",
            hint="pip install --force-reinstall llvmlite, or take --engine numpy",
        )
    return fast


def fallback_note() -> str | None:
    """Say why "auto" took NumPy although the compiled engine was wanted, and how to mend it; None if it did not."""
    if not _loaded.cache_info().currsize or not isinstance(error := _loaded(), ToolError):
        return None
    return f"NumPy quantizes, with the same bytes but slower: {error.what} ({error.found}); {error.hint}"


@cache
def _numpy() -> Engine:
    return NumpyEngine()


@cache
def _fast() -> Engine:
    engine: Engine = _package().FastEngine()
    return engine


def _is_worth_it(work: Mapping[str, int]) -> bool:
    """Compare what the compiled kernels save on *work* with what they cost."""
    if not _is_installed() or sum(work.values()) * _MOST_NS * 1e-9 < _LOAD_SECONDS:
        return False
    fast = _loaded()
    if isinstance(fast, ToolError):
        return False
    engine, kernels = fast.FastEngine(), fast.kernels()
    rows = [(kernels[name], n) for name, n in work.items() if name in kernels]
    saved: float = sum(kernel.gain_ns * 1e-9 * n for kernel, n in rows)
    cost: float = _LOAD_SECONDS + sum(0 if engine.is_compiled(kernel.name) else _COMPILE_SECONDS for kernel, _ in rows)
    return saved > cost
