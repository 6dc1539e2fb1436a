"""What the types with one scale and the quants -1, 0, 1 share."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8

TILE_BLOCKS: Final = 1024
_HALF: Final = np.float32(0.5)


def scaled(x: F32) -> tuple[F32, U8]:
    """Return for *x*, (n, k), the largest magnitudes, (n,), and `lroundf(x/d) + 1`, 0 to 2.

    Where the reciprocal of d overflows, C's conversion of infinities and NaN to an integer gives 0, so 1 comes out.
    """
    d: F32 = np.abs(x).max(axis=1, initial=0)
    ratio = x * np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)[:, None]
    q = np.ones(x.shape, np.uint8)
    is_number = np.isfinite(ratio)
    q += (ratio >= _HALF) & is_number
    q -= (ratio <= -_HALF) & is_number
    return d, q
