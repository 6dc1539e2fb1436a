"""Steps from a source tensor to an output tensor, for rows: each takes the config and a view, and gives a view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError
from pipeline.types import Shape, View
from pipeline.views import Computed, Floats, Folded, Joined, Mxfp4, RowNumbers, Rows, Shaped, Transposed

Step = Callable[[ModelConfig, View], View]
Sizes = Callable[[ModelConfig], tuple[int, ...]]


@dataclass(frozen=True)
class InterleaveHeads:
    """From half-split to interleaved rotary pairs inside each head of *per_head* rows.

    transformers rotates the pair (i, i + d/2) of a head of d rows, ggml's "normal" rope the pair (2i, 2i + 1): output
    row 2i comes from input row i, output row 2i + 1 from input row i + d/2.
    """

    per_head: int

    def __call__(self, rows: RowNumbers) -> RowNumbers:
        """Give the input row of each output row."""
        head, inner = np.divmod(rows, self.per_head)
        pair, second = np.divmod(inner, 2)
        return np.asarray(head * self.per_head + second * (self.per_head // 2) + pair)


def interleave_heads(heads: str) -> Step:
    """Make a step that reorders the rows of a query or key projection, or the elements of its bias.

    *heads* is the name under which ModelConfig has the number of heads: "n_heads" or "n_heads_kv".
    """

    def step(config: ModelConfig, view: View) -> View:
        n_heads = int(getattr(config, heads))
        if view.shape[0] % (2 * n_heads):
            raise FormatError(
                "rows do not split into heads", expected=f"a multiple of {2 * n_heads} rows", found=view.shape[0]
            )
        return Rows(view, view.shape, InterleaveHeads(view.shape[0] // n_heads))

    return step


@dataclass(frozen=True)
class Part:
    """Rows *first* to *first* + *size* of each group of *total* rows."""

    total: int
    first: int
    size: int

    def __call__(self, rows: RowNumbers) -> RowNumbers:
        """Give the input row of each output row."""
        group, inner = np.divmod(rows, self.size)
        return np.asarray(group * self.total + self.first + inner)


def part(number: int, of: int) -> Step:
    """Make a step that takes part *number* of a tensor that was made of *of* matrices, one below the other.

    A tensor with an outer dimension, such as one for the experts, gives that part of each matrix in it.
    """

    def step(_config: ModelConfig, view: View) -> View:
        if len(view.shape) < 2:
            raise FormatError("a tensor is no matrix", expected="two dimensions or more", found=view.shape)
        *outer, total, n_cols = view.shape
        if total % of:
            raise FormatError("rows do not split into parts", expected=f"a multiple of {of} rows", found=total)
        size = total // of
        return Rows(view, (*outer, size, n_cols), Part(total, number * size, size))

    return step


def cut(view: View, sizes: tuple[int, ...]) -> list[View]:
    """Cut a fused tensor whose rows, or a vector whose elements, come in groups of parts of *sizes* rows each.

    The k-th view has the k-th parts of all groups.
    """
    at = max(len(view.shape) - 2, 0)  # the dimension that is cut
    total, n = sum(sizes), view.shape[at]
    if min(sizes) <= 0 or n % total:
        raise FormatError("rows do not split into groups", expected=f"a multiple of {total} rows", found=n)
    firsts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        Rows(view, (*view.shape[:at], n // total * size, *view.shape[at + 1 :]), Part(total, first, size))
        for first, size in zip(firsts, sizes, strict=True)
    ]


def piece(number: int, sizes: Sizes) -> Step:
    """Make a step that takes piece *number* of each group of rows; see `cut`."""
    return lambda config, view: cut(view, sizes(config))[number]


def ungroup(sizes: Sizes) -> Step:
    """Make a step that puts the first pieces of all groups before the second ones and so on; see `cut`."""
    return lambda config, view: Joined(tuple(cut(view, sizes(config))), view.shape)


def per_head(config: ModelConfig, view: View) -> View:
    """Split the rows of a matrix by query heads into a matrix for each."""
    n_rows, n_cols = view.shape
    return Shaped(view, (config.n_heads, n_rows // config.n_heads, n_cols))


def mxfp4(_config: ModelConfig, views: Sequence[View]) -> View:
    """Merge the blocks of a tensor, (..., blocks in a row, 16), and their scales, (..., blocks in a row)."""
    (blocks,), (scales,) = views[0].sources, views[1].sources
    if len(blocks.shape) < 3 or blocks.shape[-1] != 16:
        raise FormatError("blocks do not have 16 bytes", expected="(..., 16)", found=blocks.shape)
    *outer, n_blocks, n_bytes = blocks.shape
    return Mxfp4(replace(blocks, shape=(*outer, n_blocks * n_bytes)), scales)


def transpose(_config: ModelConfig, view: View) -> View:
    """Swap the last two dimensions, as the weights of GPT-2's Conv1D need it."""
    return Transposed(view)


def skip_rows(count: Callable[[ModelConfig], int]) -> Step:
    """Make a step that leaves out the first rows of a matrix."""

    def step(config: ModelConfig, view: View) -> View:
        n_rows, n_cols = view.shape
        n = count(config)
        if not 0 <= n < n_rows:
            raise FormatError("a matrix has too few rows", expected=f"more than {n}", found=n_rows)
        return Rows(view, (n_rows - n, n_cols), Part(n_rows, n, n_rows - n))

    return step


def fold(shape: Callable[[ModelConfig], Shape]) -> Step:
    """Make a step that lays a vector out as a matrix."""
    return lambda config, view: Folded(view, shape(config))


def squeeze(_config: ModelConfig, view: View) -> View:
    """Drop dimensions of one between the first and the last, such as the channels of a depthwise convolution."""
    first, *inner, last = view.shape
    return Shaped(view, (first, *(n for n in inner if n != 1), last))


def minus_exp(_config: ModelConfig, view: View) -> View:
    """Turn the logarithm of a state space's decay into the decay."""
    return Computed(view, _minus_exp)


def _minus_exp(values: Floats) -> None:
    # In float64: the float32 result then is the same whatever the processor's vector instructions.
    np.copyto(values, -np.exp(values.astype(np.float64)), casting="same_kind")


def times(factor: Callable[[ModelConfig], float]) -> Step:
    """Make a step that multiplies every weight by a float32."""
    return lambda config, view: Computed(view, _Times(factor(config)))


@dataclass(frozen=True)
class _Times:
    factor: float

    def __call__(self, values: Floats) -> None:
        values *= np.float32(self.factor)


def plus_one(_config: ModelConfig, view: View) -> View:
    """Add one to the weights of a norm that multiplies by (1 + weight); llama.cpp multiplies by the weight."""
    return Computed(view, _add_one)


def _add_one(values: Floats) -> None:
    values += np.float32(1)
