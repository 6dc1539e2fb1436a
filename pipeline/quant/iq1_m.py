"""IQ1_M: super-blocks of 256 elements, 1.75 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.quant._base import U8
from pipeline.quant._native import NativeType

_SCALES = 48  # behind 32 bytes of points and 16 of signs


class _Type(NativeType):
    def _bad_scales(self, blocks: U8) -> NDArray[np.bool_]:
        """Put the exponent together: the scale's four digits are the first ones of four numbers of 16 bits."""
        digits = blocks[..., _SCALES + 7], blocks[..., _SCALES + 5]
        bad: NDArray[np.bool_] = np.logical_and(digits[0] & 0x70 == 0x70, digits[1] & 0xC0 == 0xC0)
        return bad


TYPE = _Type("IQ1_M", 29, 56)
