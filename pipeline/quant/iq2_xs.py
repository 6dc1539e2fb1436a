"""IQ2_XS: super-blocks of 256 elements, 2.31 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ2_XS", 17, 74, needs_importance=True)
