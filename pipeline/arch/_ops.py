"""Steps between source values and output values.  Each is an `Op` of pipeline.types; a row names a factory of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError
from pipeline.types import Op

OpFactory = Callable[[ModelConfig], Op]


@dataclass(frozen=True)
class InterleaveHeads:
    """Reorder rows inside each head from half-split to interleaved rotary pairs.

    transformers rotates the pair (i, i + d/2) of a head of d rows, ggml's "normal" rope the pair (2i, 2i + 1): output
    row 2i comes from input row i, output row 2i + 1 from input row i + d/2.
    """

    n_heads: int
    is_exact: bool = True

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Keep the shape; the rows must split evenly into heads of an even size."""
        if shape[0] % (2 * self.n_heads):
            raise FormatError(
                "rows do not split into heads", expected=f"a multiple of {2 * self.n_heads} rows", found=shape[0]
            )
        return shape

    def source_rows(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        """Give the input row of each output row; for a bias the rows are its elements."""
        per_head = shape[0] // self.n_heads
        head, inner = np.divmod(rows, per_head)
        pair, second = np.divmod(inner, 2)
        return np.asarray(head * per_head + second * (per_head // 2) + pair)

    def values(self, tile: np.ndarray) -> None:
        """Leave values as they are."""


def interleave_heads(key: str) -> OpFactory:
    """Make `InterleaveHeads` over the number of heads that ModelConfig calls *key* (n_heads or n_heads_kv)."""

    def bind(config: ModelConfig) -> Op:
        return InterleaveHeads(getattr(config, key))

    return bind
