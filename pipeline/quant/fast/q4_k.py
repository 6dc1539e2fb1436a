"""Q4_K: super-blocks of 256 elements of 4 bits, 8 sub-blocks with 6-bit scales and minimums."""

from __future__ import annotations

from pipeline.quant.fast._decode import N, load_bytes
from pipeline.quant.fast._k_affine import decoding_super_blocks, quantize_super_blocks, quantize_weighted
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._search import Candidates
from pipeline.quant.fast._tile import join_bytes
from pipeline.quant.fast._vector import Code, Pointer, Rows, Value

_BYTES = 144
_QS = 4  # words before the quants: d and dmin, scales
_PLAN = Candidates(n=32, n_max=15, first=-1.0, delta=0.1, n_steps=20)


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_K_ref`."""
    quantize_super_blocks(code, a, _PLAN, _BYTES, _pack)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q4_K_impl`."""
    quantize_weighted(code, a, 15, _BYTES, _pack)


def _pack(pair: Value, L: Rows, words: Rows) -> None:
    """Two sub-blocks share 32 bytes: the even one in the low halves, the odd one in the high halves."""
    for word in range(8):
        elements = range(4 * word, 4 * word + 4)
        words[pair * 8 + (_QS + word)] = join_bytes([L[i] | (L[i + 32] << 4) for i in elements])


def _quants(block: Pointer, pair: int) -> tuple[Value, Value]:
    """Mirror how `dequantize_row_q4_K` reads them."""
    q = load_bytes(block.at(4 * _QS + N * pair))
    return q & 15, q >> 4


KERNEL = Kernel("Q4_K", 40, _build, _build_weighted, decoding_super_blocks(_BYTES, _quants))
