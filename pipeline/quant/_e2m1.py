"""What MXFP4 and NVFP4 share: numbers of 4 bits, E2M1."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.quant._base import F32, U8

# Twice the values of E2M1 (kvalues_fp4).
VALUES: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def nearest_e2m1(x: F32, scale: F32) -> U8:
    """Mirror `best_index_mxfp4`: of equally near values the first, so never the negative zero."""
    magnitude = np.abs(x)
    best = np.zeros(x.shape, np.uint8)
    smallest = magnitude.copy()
    for index in range(1, 8):
        error = np.abs(VALUES[index] * scale - magnitude)
        is_nearer = error < smallest
        best[is_nearer] = index
        np.copyto(smallest, error, where=is_nearer)
    best[(x < 0) & (best > 0)] += 8
    return best
