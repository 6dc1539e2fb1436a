"""Q3_K: super-blocks of 256 elements of 3 bits, 16 sub-blocks with 6-bit scales; the third bits apart."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16, nearest_clipped, nearest_int
from pipeline.quant.fast._search import first_largest, make_q3_quants, make_qx_quants
from pipeline.quant.fast._tile import join_bytes, load_importance, pack_crumbs, super_blocks, weigh
from pipeline.quant.fast._vector import INT, Code, Rows, Value, larger, smaller, where

_BYTES = 110
_QS, _SCALES, _D = 8, 24, 27  # words before the quants, the scales and d
_TOGETHER = 2  # sub-blocks that are searched side by side


class _Tile(NamedTuple):
    """Scratch: *x* the elements of a tile, *L* their quants, *scales* those of the sub-blocks."""

    x: Rows
    words: Rows
    w: Rows
    L: Rows
    scales: Rows
    sums: Rows


def _scratch(code: Code) -> _Tile:
    L = code.rows(256, INT)
    return _Tile(code.rows(256), code.rows(_D + 1, INT), code.rows(16), L, code.rows(16), code.rows(16))


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q3_K_ref`."""
    t = _scratch(code)

    def sub_blocks(group: Value) -> None:
        numbers = [group * _TOGETHER + k for k in range(_TOGETHER)]
        make_q3_quants(4, [(t.x.after(j * 16), t.L.after(j * 16), t.scales.after(j)) for j in numbers], 16)

    def compute(_first: Value) -> None:
        code.loop(16 // _TOGETHER, sub_blocks)
        value = first_largest(code, t.scales, 16)
        inverse = -32 / value
        is_zero = value == 0
        quants = []
        for j in range(16):
            l = (nearest_int(inverse * t.scales[j]) << 24).arithmetic_shift(24)
            quants.append(where(is_zero, 0, smaller(larger(l, -32), 31) + 32))
        _finish(code, t, where(is_zero, 0, fp32_to_fp16(1 / inverse)), quants)

    super_blocks(code, a, t.x, t.words, _BYTES, compute)


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q3_K_impl`."""
    t, importance = _scratch(code), code.rows(256)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance)
        (sum_x2,) = code.each(256, lambda i, total: (total + t.x[i] * t.x[i],), code.floats(0))
        sigma2 = sum_x2 * 2 / 256

        def sub_block(j: Value) -> None:
            x, L = t.x.after(j * 16), t.L.after(j * 16)
            t.sums[j] = weigh(code, x, importance.after(j * 16), sigma2, t.w, 16)
            found, is_empty = make_qx_quants(x, t.w, 4, 16)
            t.scales[j] = found.scale

            def keep(i: Value) -> None:
                L[i] = where(is_empty, 0, nearest_clipped(found.inverse * x[i], -4, 3).ints(-4))

            code.each(16, keep)

        code.loop(16, sub_block)
        found, is_empty = make_qx_quants(t.scales, t.sums, 32, 16)
        quants = [nearest_clipped(found.inverse * t.scales[j], -32, 31).ints(-32) for j in range(16)]
        _finish(code, t, fp32_to_fp16(found.scale), [where(is_empty, 0, q) for q in quants])

    super_blocks(code, a, t.x, t.words, _BYTES, compute)


def _finish(code: Code, t: _Tile, d: Value, quants: list[Value]) -> None:
    """Write the blocks with *quants*, scales of 6 bits: L is rounded again with the scales as they are stored."""
    t.words[_D] = d
    for word in range(2):
        pairs = zip(quants[4 * word : 4 * word + 4], quants[4 * word + 8 : 4 * word + 12], strict=True)
        t.words[_SCALES + word] = join_bytes([(low & 15) | ((high & 15) << 4) for low, high in pairs])
    upper = [_join(quants[k::4], 4) for k in range(4)]
    t.words[_SCALES + 2] = join_bytes(upper)
    for j, q in enumerate(quants):
        t.scales[j] = fp16_to_fp32(d) * (q - 32).to_float()
    code.loop(16, lambda j: _final_quants(code, t, j))
    _pack_third_bits(code, t)
    pack_crumbs(code, t.L, t.words.after(_QS))


def _join(quants: list[Value], shift: int) -> Value:
    """Join what is above *shift* of up to four values, two bits each."""
    joined = quants[0] >> shift
    for k, q in enumerate(quants[1:], 1):
        joined = joined | ((q >> shift) << (2 * k))
    return joined


def _final_quants(code: Code, t: _Tile, j: Value) -> None:
    """Write L of one sub-block; where its stored scale is zero, that of the search stays."""
    x, L, d = t.x.after(j * 16), t.L.after(j * 16), t.scales[j]

    def rounded(i: Value) -> None:
        L[i] = where(d == 0, L[i], nearest_clipped(x[i] / d, -4, 3).ints(-4))

    code.each(16, rounded)


def _pack_third_bits(code: Code, t: _Tile) -> None:
    """Bit b of byte m of hmask is the third bit of element 32 b + m, which leaves L."""

    def word(i: Value) -> None:
        parts = []
        for k in range(4):
            byte = code.ints(0)
            for b in range(8):
                at = i * 4 + (32 * b + k)
                byte = byte | ((t.L[at] >> 2) << b)
                t.L[at] = t.L[at] & 3
            parts.append(byte)
        t.words[i] = join_bytes(parts)

    code.loop(8, word)


KERNEL = Kernel("Q3_K", 25, _build, _build_weighted)
