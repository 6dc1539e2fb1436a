"""IQ2_S: super-blocks of 256 elements, 2.56 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ2_S", 22, 82)
