"""IQ1_M: super-blocks of 256 elements, 1.75 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ1_M", 29, 56)
