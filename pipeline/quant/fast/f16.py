"""F16: IEEE half precision, rounded half to even; ggml's NaN is 0x7E00 with the sign kept."""

from __future__ import annotations

from pipeline.quant.fast._kernel import Arguments, Kernel
from pipeline.quant.fast._math import fp16_to_fp32, fp32_to_fp16
from pipeline.quant.fast._tile import tiles
from pipeline.quant.fast._vector import HALF, INT, Code, Value


def _build(code: Code, a: Arguments) -> None:
    """Mirror `ggml_fp32_to_fp16_row`."""

    def one(first: Value) -> None:
        x = a.values.at(first).load(code.lanes)
        a.out.at(first * 2).store(fp32_to_fp16(x).narrow(HALF))

    tiles(code, a.n_blocks, one)


def _build_decode(code: Code, a: Arguments) -> None:
    """Mirror `ggml_fp16_to_fp32_row`."""

    def one(first: Value) -> None:
        bits = a.x.at(first * 2).load(HALF, code.lanes).widen(INT)
        a.out.at(first * 4).store(fp16_to_fp32(bits))

    tiles(code, a.n_blocks, one)


KERNEL = Kernel("F16", 1.0, _build, build_decode=_build_decode)
