"""What a kernel is: the name of its type, and what writes its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.quant.fast._vector import FLOAT, HALF, INT, Code, Pointer, Value

N_POINTERS, N_COUNTS = 4, 2


class Floats:
    """A place in memory where float32 are, or *are_halves*: the upper halves of their bits, which is bfloat16."""

    def __init__(self, start: Pointer, *, are_halves: bool = False) -> None:
        self._start = start
        self._are_halves = are_halves

    def at(self, n: Value | int) -> Floats:
        """Give the place *n* numbers further on."""
        return Floats(self._start.at(n * (2 if self._are_halves else 4)), are_halves=self._are_halves)

    def load(self, n: int = 0) -> Value:
        """Load *n* of them as a vector of float32; 0 loads a scalar."""
        if not self._are_halves:
            return self._start.load(FLOAT, n)
        return (self._start.load(HALF, n).widen(INT) << 16).floats()


@dataclass(frozen=True)
class Arguments:
    """What a kernel is called with.

    *x* are float32 (or, for what `reading_bf16` makes, bfloat16), block after block, *out* the blocks to write;
    *n_blocks* is at least the number of lanes.  *importance* has float32 for *blocks_per_row* blocks, *row_means* the
    mean square of each row; kernels that do not weigh must not look there.
    """

    x: Pointer
    importance: Pointer
    row_means: Pointer
    out: Pointer
    n_blocks: Value
    blocks_per_row: Value
    is_bf16: bool = False

    @property
    def values(self) -> Floats:
        """The numbers at *x*."""
        return Floats(self.x, are_halves=self.is_bf16)

    @classmethod
    def of(cls, code: Code) -> Arguments:
        """Name the parameters of a function with N_POINTERS and N_COUNTS."""
        x, importance, row_means, out = code.pointers
        n_blocks, blocks_per_row = code.counts
        return cls(x, importance, row_means, out, n_blocks, blocks_per_row)


Build = Callable[[Code, Arguments], None]


def reading_bf16(build: Build) -> Build:
    """Return what writes the same code for *x* that are bfloat16."""
    return lambda code, a: build(code, replace(a, is_bf16=True))


@dataclass(frozen=True)
class Kernel:
    """One type: *build* writes the code of its C function, *build_weighted* that for an importance matrix.

    *build_decode* goes the other way: *x* are blocks then, and *out* float32.
    *gain_ns* is what one weight saves against NumPy, in nanoseconds of a processor.
    """

    name: str
    gain_ns: float
    build: Build
    build_weighted: Build | None = None
    build_decode: Build | None = None
