"""IQ3_XXS: super-blocks of 256 elements, 3.06 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ3_XXS", 18, 98)
