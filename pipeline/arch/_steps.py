"""Steps from a source tensor to an output tensor, for rows: each takes the config and a view, and gives a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError
from pipeline.types import View
from pipeline.views import Joined, RowNumbers, Rows, Transposed

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


def transpose(_config: ModelConfig, view: View) -> View:
    """Swap the last two dimensions, as the weights of a GPT-2 Conv1D need it."""
    return Transposed(view)


@dataclass(frozen=True)
class Slices:
    """From each *period* of rows, those from *start* on, *length* of them."""

    period: int
    start: int
    length: int

    def __call__(self, rows: RowNumbers) -> RowNumbers:
        """Give the input row of each output row."""
        group, inner = np.divmod(rows, self.length)
        return np.asarray(group * self.period + self.start + inner)


def cut(view: View, sizes: tuple[int, ...]) -> list[View]:
    """Cut a fused tensor whose rows (or a vector, whose elements) come in groups, each of parts of *sizes* rows.

    The k-th view has the k-th parts of all groups.
    """
    at = max(len(view.shape) - 2, 0)  # the dimension that is cut
    period, n = sum(sizes), view.shape[at]
    if min(sizes) <= 0 or n % period:
        raise FormatError("rows do not split into groups", expected=f"a multiple of {period} rows", found=n)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        Rows(view, (*view.shape[:at], n // period * size, *view.shape[at + 1 :]), Slices(period, start, size))
        for start, size in zip(starts, sizes, strict=True)
    ]


def piece(k: int, sizes: Sizes) -> Step:
    """Make a step that takes the *k*-th part of each group; see `cut`."""
    return lambda config, view: cut(view, sizes(config))[k]


def ungroup(sizes: Sizes) -> Step:
    """Make a step that puts the first parts of all groups before the second ones and so on; see `cut`."""
    return lambda config, view: Joined(tuple(cut(view, sizes(config))), view.shape)
