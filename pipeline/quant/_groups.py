"""The types with blocks of 32 elements and one float16 scale: how their kernels lay out a tile.

A tile of n blocks becomes `(8, n * 4)`: the 8 groups of 4 neighbouring elements of a block lie in 8 long rows, and in a
row the groups of all blocks side by side.  Moving groups of 16 bytes costs a quarter of a full transposition, rows are
long enough for NumPy's vector loops, and a block's scale is a row vector repeated four times.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pipeline.quant._base import F32, U8, U16, U32, Array, Index, Take
from pipeline.quant._kernels import first_of_magnitude, fp16_bits, signed_largest
from pipeline.quant._search import first_zeros

TILE_BLOCKS: Final = 2048
_NIBBLE_BITS: Final = np.uint32(0x01010101)
_GATHER: Final = np.uint32(1 << 24 | 1 << 17 | 1 << 10 | 1 << 3)
_GROUP_SHIFTS: Final = (4 * np.arange(8, dtype=np.uint32))[:, None]


class GroupBuffers:
    """Scratch of one tile: *x* the elements, *q* the quants, both (8, 4 n), and *row*, (4 n,)."""

    def __init__(self, take: Take, n: int) -> None:
        self.n = n
        self.x: F32 = take((8, 4 * n), np.float32)
        self.t: F32 = take((8, 4 * n), np.float32)
        self.q: U8 = take((8, 4 * n), np.uint8)
        self.row: F32 = take((4 * n,), np.float32)

    def load(self, x: F32) -> None:
        """Lay out *x*, (n, 32)."""
        np.copyto(self.x.view(np.complex128), x.view(np.complex128).T)

    def spread(self, per_block: F32) -> F32:
        """Repeat a value per block for the four elements of a group: (n,) to (4 n,)."""
        for lane in range(4):  # four long strided copies take a third of the time of one broadcast
            self.row[lane::4] = per_block
        return self.row

    def maximum(self) -> F32:
        """Return each block's largest element, (n,)."""
        return _fold(np.maximum, np.maximum.reduce(self.x, axis=0, out=self.row))

    def minimum(self) -> F32:
        """Return each block's smallest element, (n,)."""
        return _fold(np.minimum, np.minimum.reduce(self.x, axis=0, out=self.row))


def _fold(ufunc: np.ufunc, row: F32) -> F32:
    """Reduce the four elements of each group of *row*, (4 n,), to (n,)."""
    result: F32 = ufunc(ufunc(row[0::4], row[1::4]), ufunc(row[2::4], row[3::4]))
    return result


def store_groups(rows: Array, out: Array) -> None:
    """Write *rows*, (k, n) of uint32, as the columns of *out*, (n, 4 k) bytes."""
    columns = out.view(np.uint32)
    for g, row in enumerate(rows):  # NumPy's own order would be n copies of k elements
        columns[:, g] = row


class Scales(NamedTuple):
    """Per block: *d* the scale, *id* the factor to quantize with, and *bad*, the blocks where *id* is no number.

    In those the factor has overflowed; C's conversion of the products to an integer gives 0 for every element, so *id*
    is 0 there and the caller clears the quants.
    """

    d: F32
    id: F32
    bad: Index


def scales(d: F32) -> Scales:
    """Mirror `id = d ? 1.0f/d : 0.0f` and find where it overflows; *d* may be infinite or NaN, too."""
    inverse = np.float32(1) / d
    is_sound = np.isfinite(inverse * d)
    bad = np.empty(0, np.intp)
    if not is_sound.all():
        bad = np.flatnonzero(~is_sound)
        inverse[bad] = 0
        bad = bad[d[bad] != 0]
    return Scales(d, inverse, bad)


def largest_element(x: F32, buf: GroupBuffers) -> F32:
    """Return for each block of *x*, (n, 32), the first element of the largest magnitude, with its sign."""
    value, amax, ties = signed_largest(buf.minimum(), buf.maximum())
    if len(ties):
        value[ties] = first_of_magnitude(x[ties].T, amax[ties])
    return value


def affine_blocks(x: F32, buf: GroupBuffers, n_max: int) -> tuple[U16, U16]:
    """Mirror the common part of `quantize_row_q4_1_ref` and `_q5_1_ref` for *x*, (n, 32); the quants are left in `q`.

    Return the float16 bits of scale and minimum, (n,) each.
    """
    buf.load(x)
    lowest = buf.minimum()
    first_zeros(x, lowest)
    # The sum with zero makes a difference of two zeros positive, as that of one and the same element is.
    d, inverse, bad = scales((buf.maximum() - lowest + np.float32(0)) / np.float32(n_max))
    scaled = np.subtract(buf.x, buf.spread(lowest), out=buf.x)
    scaled *= buf.spread(inverse)
    scaled += np.float32(0.5)
    np.copyto(buf.q, scaled, casting="unsafe")
    if len(bad):
        buf.q.reshape(8, -1, 4)[:, bad] = 0
    return fp16_bits(d), fp16_bits(lowest)


def pack_nibbles(q: U8, out: Array) -> None:
    """Write the low 4 bits of *q*, (8, 4 n): element j beside element j + 16, into *out*, (n, 16).

    The low half must be below 16 already; of the high half the product drops what is above.
    """
    high = q[4:] * np.uint8(16)
    high |= q[:4]
    store_groups(high.view(np.uint32), out)


def fifth_bits(q: U8) -> U32:
    """Return bit 4 of each element of *q*, (8, 4 n), as bit j of a uint32 per block, (n,)."""
    bits = q.view(np.uint32) >> np.uint32(4)
    bits &= _NIBBLE_BITS
    # Bits 0, 8, 16 and 24 meet as the four highest ones; no two terms of the product share a place.
    bits *= _GATHER
    bits >>= np.uint32(28 - 4)
    bits <<= _GROUP_SHIFTS
    result: U32 = np.bitwise_or.reduce(bits, axis=0)
    return result


def unpack_nibbles(qs: U8) -> U8:
    """Return the 32 elements of 4 bits of each block of *qs*, (n, 16), as (n, 32)."""
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=1)


def unpack_bits(qh: U8) -> U8:
    """Return the 32 bits of each block of *qh*, (n, 4), as (n, 32) zeros and sixteens."""
    bits = np.unpackbits(np.ascontiguousarray(qh), axis=1, bitorder="little")
    bits *= np.uint8(16)
    return bits
