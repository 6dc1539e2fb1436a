"""IQ1_S: super-blocks of 256 elements, 1.56 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ1_S", 19, 50, needs_importance=True)
