"""IQ2_XXS: super-blocks of 256 elements, 2.06 bits each, as points of a grid; encoded by libggml."""

from __future__ import annotations

from pipeline.quant._native import NativeType

TYPE = NativeType("IQ2_XXS", 16, 66, needs_importance=True)
