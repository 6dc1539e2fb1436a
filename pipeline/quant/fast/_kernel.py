"""What a kernel is: the name of its type, and what writes its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.quant.fast._vector import Code, Pointer, Value

N_POINTERS, N_COUNTS = 4, 2


@dataclass(frozen=True)
class Arguments:
    """What a kernel is called with.

    *x* are float32, block after block, *out* the blocks to write; *n_blocks* is at least the number of lanes.
    *importance* has float32 for *blocks_per_row* blocks, *row_means* the mean square of each row; kernels that do not
    weigh must not look there.
    """

    x: Pointer
    importance: Pointer
    row_means: Pointer
    out: Pointer
    n_blocks: Value
    blocks_per_row: Value

    @classmethod
    def of(cls, code: Code) -> Arguments:
        """Name the parameters of a function with N_POINTERS and N_COUNTS."""
        x, importance, row_means, out = code.pointers
        n_blocks, blocks_per_row = code.counts
        return cls(x, importance, row_means, out, n_blocks, blocks_per_row)


Build = Callable[[Code, Arguments], None]


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
