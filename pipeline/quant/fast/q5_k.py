"""Q5_K: super-blocks of 256 elements of 5 bits, 8 sub-blocks with 6-bit scales and minimums; the fifth bits apart."""

from __future__ import annotations

from pipeline.quant.fast._decode import N, load_bytes
from pipeline.quant.fast._k_affine import decoding_super_blocks, quantize_super_blocks, quantize_weighted
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._search import Candidates
from pipeline.quant.fast._tile import join_bytes
from pipeline.quant.fast._vector import INT, Code, Pointer, Rows, Value, where

_BYTES = 176
_QH, _QS = 4, 12  # words before the fifth bits and before the quants
_PLAN = Candidates(n=32, n_max=31, first=-0.5, delta=0.1, n_steps=15)


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_K_ref`."""
    quantize_super_blocks(code, a, _PLAN, _BYTES, _pack)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q5_K_impl`."""
    quantize_weighted(code, a, 31, _BYTES, _pack, clip_scales=True)


def _pack(pair: Value, L: Rows, words: Rows) -> None:
    """Two sub-blocks share 32 bytes; bit j of byte i of qh is the fifth bit of element i of sub-block j."""
    shift = (pair * 2).narrow(INT).spread(words.start.code.lanes)
    for word in range(8):
        elements = range(4 * word, 4 * word + 4)
        words[pair * 8 + (_QS + word)] = join_bytes([(L[i] & 15) | ((L[i + 32] & 15) << 4) for i in elements])
        fifth = join_bytes([(L[i] >> 4) | ((L[i + 32] >> 4) << 1) for i in elements]) << shift
        words[_QH + word] = where(pair == 0, fifth, words[_QH + word] | fifth)


def _quants(block: Pointer, pair: int) -> tuple[Value, Value]:
    """Mirror how `dequantize_row_q5_K` reads them."""
    q, fifth = load_bytes(block.at(4 * _QS + N * pair)), load_bytes(block.at(4 * _QH)) >> (2 * pair)
    return (q & 15) | ((fifth & 1) << 4), (q >> 4) | ((fifth >> 1 & 1) << 4)


KERNEL = Kernel("Q5_K", 33, _build, _build_weighted, decoding_super_blocks(_BYTES, _quants))
