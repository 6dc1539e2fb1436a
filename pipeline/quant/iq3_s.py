"""IQ3_S: super-blocks of 256 elements, 3.44 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ3_S", 21, 110)
