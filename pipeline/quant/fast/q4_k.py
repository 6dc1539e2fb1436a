"""Q4_K: super-blocks of 256 elements of 4 bits, 8 sub-blocks with 6-bit scales and minimums."""

from __future__ import annotations

from pipeline.quant.fast._k_affine import Candidates, Fields, final_quants, fields, pack_scales, search, six_bits
from pipeline.quant.fast._tile import clear_blocks, is_zero, load_tile, store_words, tiles
from pipeline.quant.fast._vector import INT, Code, Rows, Value

_PLAN = Candidates(n=32, n_max=15, first=-1.0, delta=0.1, n_steps=20)
_BYTES = 144


def build(code: Code) -> None:
    """Mirror `quantize_row_q4_K_ref`."""
    x, _, out = code.pointers
    n_blocks, _ = code.counts
    f, words = fields(code), code.rows(_BYTES // 4, INT)

    def tile(first: Value) -> None:
        load_tile(code, lambda lane: x.at((first + lane) * 1024), 256, f.x)
        start = out.at(first * _BYTES)
        code.when(
            is_zero(code, f.x, 256),
            lambda: clear_blocks(code, code.lanes * _BYTES, start),
            lambda: _super_blocks(code, f, words),
        )
        code.when(
            is_zero(code, f.x, 256) ^ 1,
            lambda: store_words(code, words, _BYTES // 4, lambda lane: start.at(lane * _BYTES)),
        )

    tiles(code, n_blocks, tile)


def _super_blocks(code: Code, f: Fields, words: Rows) -> None:
    search(code, f, _PLAN)
    d, dmin = six_bits(code, f.scales, f.ls), six_bits(code, f.mins, f.lm)
    words[0] = d | (dmin << 16)
    pack_scales(f, words.after(1))

    def pack(jj: Value, L: Rows) -> None:
        for word in range(8):
            packed = None
            for k in range(4):
                i = 4 * word + k
                byte = (L[i] | (L[i + 32] << 4)) << (8 * k)
                packed = byte if packed is None else packed | byte
            words[jj * 8 + (4 + word)] = packed

    final_quants(code, f, (d, dmin), 15, pack)
