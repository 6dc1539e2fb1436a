"""Steps from a source tensor to an output tensor, for rows: each takes the config and a view, and gives a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError
from pipeline.types import View
from pipeline.views import Computed, Floats, RowNumbers, Rows

Step = Callable[[ModelConfig, View], View]


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
        *outer, total, n_cols = view.shape
        if total % of:
            raise FormatError("rows do not split into parts", expected=f"a multiple of {of} rows", found=total)
        size = total // of
        return Rows(view, (*outer, size, n_cols), Part(total, number * size, size))

    return step


def plus_one(_config: ModelConfig, view: View) -> View:
    """Add one to the weights of a norm that multiplies by (1 + weight); llama.cpp multiplies by the weight."""
    return Computed(view, _add_one)


def _add_one(values: Floats) -> None:
    values += np.float32(1)
