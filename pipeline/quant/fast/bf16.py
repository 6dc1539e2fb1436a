"""BF16: the upper half of a float32, rounded half to even; a NaN is made quiet and keeps its upper bits."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp32_to_bf16
from pipeline.quant.fast._tile import tiles
from pipeline.quant.fast._vector import HALF, INT, Code, Value


def _build(code: Code, a: Arguments) -> None:
    """Mirror `ggml_fp32_to_bf16_row_ref`."""

    def one(first: Value) -> None:
        x = a.values.at(first).load(code.lanes)
        a.out.at(first * 2).store(fp32_to_bf16(x).narrow(HALF))

    tiles(code, a.n_blocks, one)


def _build_decode(code: Code, a: Arguments) -> None:
    """Mirror `ggml_bf16_to_fp32_row`."""

    def one(first: Value) -> None:
        bits = a.x.at(first * 2).load(HALF, code.lanes).widen(INT)
        a.out.at(first * 4).store(bits << 16)

    tiles(code, a.n_blocks, one)


KERNEL = Kernel("BF16", 0.3, _build, build_decode=_build_decode)
