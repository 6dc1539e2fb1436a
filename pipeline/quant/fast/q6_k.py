"""Q6_K: super-blocks of 256 elements of 6 bits, 16 sub-blocks with 8-bit scales."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.quant.fast._decode import N, decoding, load_bytes, load_half, with_sign
from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16, nearest_clipped, nearest_int
from pipeline.quant.fast._search import GROUP_MAX_EPS, first_largest, make_qx_quants
from pipeline.quant.fast._tile import join_bytes, load_importance, super_blocks
from pipeline.quant.fast._vector import BYTE, INT, Code, Pointer, Rows, Value, absolute, smaller, where

_BYTES = 210
_QH, _SCALES, _D = 32, 48, 52  # words before the upper bits, the scales and d


class _Tile(NamedTuple):
    """Scratch: *x* the elements of a tile, *L* their quants, and for each sub-block what the search found."""

    x: Rows
    words: Rows
    L: Rows
    scales: Rows
    inverse: Rows
    empty: Rows


def _build(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q6_K_ref`."""
    t = _scratch(code)
    super_blocks(code, a, t.x, t.words, _BYTES, lambda _first: _quantize(code, t, None))


def _build_weighted(code: Code, a: Arguments) -> None:
    """Mirror `quantize_row_q6_K_impl`."""
    t, importance = _scratch(code), code.rows(256)

    def compute(first: Value) -> None:
        load_importance(code, a, first, importance)
        _quantize(code, t, importance)

    super_blocks(code, a, t.x, t.words, _BYTES, compute)


def _scratch(code: Code) -> _Tile:
    return _Tile(
        code.rows(256), code.rows(_D + 1, INT), code.rows(256, INT), code.rows(16), code.rows(16), code.rows(16, INT)
    )


def _quantize(code: Code, t: _Tile, importance: Rows | None) -> None:
    def sub_block(j: Value) -> None:
        w = None if importance is None else importance.after(j * 16)
        found, is_empty = make_qx_quants(t.x.after(j * 16), w, 32, 16)
        t.scales[j], t.inverse[j], t.empty[j] = found.scale, found.inverse, is_empty.widen(INT)

    code.loop(16, sub_block)
    value = first_largest(code, t.scales, 16)
    is_zero = absolute(value) < GROUP_MAX_EPS
    inverse = -128 / value
    d = fp32_to_fp16(1 / inverse)
    quants = [smaller(nearest_int(inverse * t.scales[j]), 127) for j in range(16)]
    for word in range(4):
        t.words[_SCALES + word] = join_bytes([q & 0xFF for q in quants[4 * word : 4 * word + 4]])
    t.words[_D] = d
    for j, q in enumerate(quants):
        t.scales[j] = fp16_to_fp32(d) * ((q << 24).arithmetic_shift(24)).to_float()
    code.loop(16, lambda j: _final_quants(code, t, j))
    _pack(code, t)
    code.when(is_zero.any(), lambda: _clear(code, t, is_zero))


def _final_quants(code: Code, t: _Tile, j: Value) -> None:
    """Write L of one sub-block; where its stored scale is zero, that of the search."""
    x, L, d = t.x.after(j * 16), t.L.after(j * 16), t.scales[j]

    def rounded(i: Value) -> None:
        L[i] = nearest_clipped(x[i] / d, -32, 31).ints(-32)

    def kept(i: Value) -> None:
        found = where(t.empty[j] != 0, 0, nearest_clipped(t.inverse[j] * x[i], -32, 31).ints(-32))
        L[i] = where(d == 0, found, L[i])

    code.when((d != 0).any(), lambda: code.each(16, rounded))
    code.when((d == 0).any(), lambda: code.each(16, kept))


def _pack(code: Code, t: _Tile) -> None:
    """Write ql and qh: of each 128 elements, those 32 apart share a byte of qh, those 64 apart one of ql."""

    def half(n: Value) -> None:
        def word(i: Value) -> None:
            quarters = [[t.L[n * 128 + i * 4 + (32 * q + k)] for k in range(4)] for q in range(4)]
            for q in range(2):
                low = [(a & 15) | ((b & 15) << 4) for a, b in zip(quarters[q], quarters[q + 2], strict=True)]
                t.words[n * 16 + i + 8 * q] = join_bytes(low)
            high = [_upper(column) for column in zip(*quarters, strict=True)]
            t.words[n * 8 + i + _QH] = join_bytes(high)

        code.loop(8, word)

    code.loop(2, half)


def _upper(column: tuple[Value, ...]) -> Value:
    """Join the upper two bits of four elements to a byte."""
    a, b, c, d = column
    return (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)


def _clear(code: Code, t: _Tile, is_zero: Value) -> None:
    """Write zeros over the super-blocks without any scale."""

    def word(i: Value) -> None:
        t.words[i] = where(is_zero, 0, t.words[i])

    code.loop(_D + 1, word)


def _decode(block: Pointer, out: Pointer) -> None:
    """Mirror `dequantize_row_q6_K`: a line of 32 elements has two scales."""
    d = load_half(block.at(4 * _D))
    for line in range(8):
        half, quarter = divmod(line, 4)
        low = load_bytes(block.at(64 * half + N * (quarter % 2))) >> (4 * (quarter // 2)) & 15
        high = load_bytes(block.at(4 * _QH + N * half)) >> (2 * quarter) & 3
        scales = [
            d * with_sign(block.at(4 * _SCALES + 2 * line + k).load(BYTE).widen(INT)).to_float() for k in range(2)
        ]
        scale = scales[0].spread(N // 2).shuffle(list(range(N)), scales[1].spread(N // 2))
        out.at(line * N * 4).store(scale * ((low | (high << 4)) - 32).to_float())


KERNEL = Kernel("Q6_K", 23, _build, _build_weighted, decoding(256, _BYTES, _decode))
