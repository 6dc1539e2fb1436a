"""What Q3_K and Q6_K share: super-blocks of 16 sub-blocks of 16 elements, with one signed scale each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8, Index, Take
from pipeline.quant._kernels import NEAREST_LIMIT
from pipeline.quant._search import Range, SearchBuffers, quants

SUPER_BLOCK: Final = 256
TILE_BLOCKS: Final = 256


class LinearBuffers:
    """Scratch of one tile of n super-blocks: element i of sub-block j of super-block b at [i, j n + b]."""

    def __init__(self, take: Take, n: int) -> None:
        self.x: F32 = take((16, 16 * n), np.float32)
        self.q: U8 = take((16, 16 * n), np.uint8)
        self.search = SearchBuffers(take, 16, 16 * n)

    def load(self, x: F32) -> Range:
        """Lay out *x*, (n, 256), and return the range of each sub-block."""
        self.search.lay_out(x, 16, self.x)
        return Range(np.minimum.reduce(self.x, axis=0), np.maximum.reduce(self.x, axis=0))


def final_quants(buf: LinearBuffers, bounds: Range, d: F32, n_max: int, searched: Callable[[Index], U8]) -> None:
    """Write L: rounded again with the scales *d* as they are stored, or as *searched* where such a scale is zero."""
    unscaled = np.flatnonzero(d == 0)
    d[unscaled] = np.inf
    f, *_ = buf.search.shaped(*buf.x.shape)
    np.divide(buf.x, d, out=f)
    low, high = np.abs(bounds.low / d), np.abs(bounds.high / d)
    wild = np.flatnonzero(~((low <= NEAREST_LIMIT) & (high <= NEAREST_LIMIT)))
    quants(f, wild, -n_max, n_max - 1, buf.q)
    if len(unscaled):
        buf.q[:, unscaled] = searched(unscaled)
