"""IQ4_NL: 32 elements of 4 bits that stand for sixteen values of unequal distance, with one scale."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp32_to_fp16
from pipeline.quant.fast._nonlinear import reciprocal, search_scale, write_indices
from pipeline.quant.fast._tile import blocks, join_bytes, load_importance, weigh
from pipeline.quant.fast._vector import INT, Code, Rows, Value

_BYTES = 18


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_iq4_nl`."""
    x, words = code.rows(32), code.rows(-(-_BYTES // 4), INT)
    blocks(code, a, x, words, (32, _BYTES), lambda _first: _finish(code, x, words, search_scale(code, x, None)))


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_iq4_nl` with quant_weights."""
    x, words = code.rows(32), code.rows(-(-_BYTES // 4), INT)
    w, importance = code.rows(32), code.rows(32)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance, 32)
        (sum_x2,) = code.each(32, lambda i, total: (total + x[i] * x[i],), code.floats(0))
        weigh(code, x, importance, sum_x2 * (2 / 32), w, 32)
        _finish(code, x, words, search_scale(code, x, w))

    blocks(code, a, x, words, (32, _BYTES), compute)


def _finish(code: Code, x: Rows, words: Rows, scale: Value) -> None:
    """Write the blocks: the scale, and elements j and j + 16 in one byte."""
    L, d = code.rows(32, INT), fp32_to_fp16(scale)
    write_indices(code, x, reciprocal(scale), L)
    parts = [d & 0xFF, d >> 8, *(L[i] | (L[i + 16] << 4) for i in range(16))]
    for word in range(0, _BYTES, 4):
        words[word // 4] = join_bytes(parts[word : word + 4])


KERNEL = Kernel("IQ4_NL", 60, _build, _build_weighted)
