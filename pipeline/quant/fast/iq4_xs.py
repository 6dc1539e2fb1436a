"""IQ4_XS: super-blocks of 256 elements as in IQ4_NL, 8 sub-blocks with 6-bit scales."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp32_to_fp16, nearest_clipped
from pipeline.quant.fast._nonlinear import reciprocal, search_scale, write_indices
from pipeline.quant.fast._search import first_largest
from pipeline.quant.fast._tile import blocks, join_bytes, load_importance, weigh
from pipeline.quant.fast._vector import INT, Code, Rows, Value

_BYTES = 136
_QS = 2  # words before the quants: d and scales_h, scales_l


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_iq4_xs`."""
    x, words, scales = _scratch(code)

    def compute(_first: Value) -> None:
        def sub_block(j: Value) -> None:
            scales[j] = search_scale(code, x.after(j * 32), None)

        code.loop(8, sub_block)
        _finish(code, x, words, scales)

    blocks(code, a, x, words, (256, _BYTES), compute)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_iq4_xs` with quant_weights."""
    x, words, scales = _scratch(code)
    w, importance = code.rows(32), code.rows(256)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance)
        (sum_x2,) = code.each(256, lambda i, total: (total + x[i] * x[i],), code.floats(0))

        def sub_block(j: Value) -> None:
            weigh(code, x.after(j * 32), importance.after(j * 32), sum_x2 * (2 / 256), w, 32)
            scales[j] = search_scale(code, x.after(j * 32), w)

        code.loop(8, sub_block)
        _finish(code, x, words, scales)

    blocks(code, a, x, words, (256, _BYTES), compute)


def _scratch(code: Code) -> tuple[Rows, Rows, Rows]:
    return code.rows(256), code.rows(_BYTES // 4, INT), code.rows(8)


def _finish(code: Code, x: Rows, words: Rows, scales: Rows) -> None:
    """Write the blocks: 6-bit scales, and the elements once more with the scales that these stand for."""
    d = -first_largest(code, scales, 8) / 32
    inverse = reciprocal(d)
    low, high = [], code.ints(0)
    for j in range(8):
        rounded = nearest_clipped(inverse * scales[j], -32, 31)
        scales[j] = reciprocal(d * rounded.floats())
        low.append(rounded.ints(-32) & 15)
        high = high | ((rounded.ints(-32) >> 4) << (2 * j))
    words[0] = fp32_to_fp16(d) | (high << 16)
    words[1] = join_bytes([low[2 * k] | (low[2 * k + 1] << 4) for k in range(4)])
    L = code.rows(32, INT)

    def sub_block(j: Value) -> None:
        write_indices(code, x.after(j * 32), scales[j], L)
        for word in range(4):
            elements = range(4 * word, 4 * word + 4)
            words[j * 4 + (_QS + word)] = join_bytes([L[i] | (L[i + 16] << 4) for i in elements])

    code.loop(8, sub_block)


KERNEL = Kernel("IQ4_XS", 60, _build, _build_weighted)
