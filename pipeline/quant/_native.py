"""Types that libggml itself encodes, tile by tile: their grids and searches are not written here once more.

Everything else about them is ours, so plans need no library; quantizing does, and says how to get it.
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import UsageError
from pipeline.quant._base import F32, U8, BlockType
from pipeline.runtime import Ggml, require_ggml


class NativeType(BlockType):
    """A type with super-blocks of 256; *needs_importance* where libggml stops the process without one."""

    block_size = 256
    tile_blocks = 256
    is_weighted = True

    def __init__(self, name: str, type_id: int, type_size: int, *, needs_importance: bool = False) -> None:
        # One class serves several rows of the table, so what is a class's elsewhere is an instance's here.
        self.name = name  # type: ignore[misc]
        self.id = type_id  # type: ignore[misc]
        self.type_size = type_size  # type: ignore[misc]
        self.needs_importance = needs_importance

    def require(self) -> None:
        """Refuse the type where libggml is not built, or has another form of it.

        Raises:
            ToolError: saying how to get it.
        """
        self._library()

    def quantize_rows(self, x: F32, out: U8, importance: F32 | None = None) -> None:
        """Call `ggml_quantize_chunk`.

        Raises:
            FormatError: if a row cannot be cut into blocks.
            UsageError: if an array has another form, or the type needs an importance matrix and there is none.
            ToolError: if llama.cpp is not built.
        """
        self._check(x, out)
        if importance is not None:
            self._check_importance(x, importance)
        elif self.needs_importance:
            raise UsageError(
                f"type {self.name} needs an importance matrix",
                hint="give one with --imatrix (gguf-pipeline imatrix makes it), or take another type",
            )
        if x.size:
            rows = np.require(x, requirements="A")
            weights = None if importance is None else importance.ctypes.data
            self._library().quantize(self.id, rows.ctypes.data, out.ctypes.data, x.shape, weights)

    def dequantize_rows(self, data: U8, out: F32) -> None:
        """Call `to_float`.

        Raises:
            FormatError: if a row cannot be cut into blocks.
            UsageError: if an array has another form.
            ToolError: if llama.cpp is not built.
        """
        self._check(out, data)
        if out.size:
            blocks = np.require(data, requirements="A")
            self._library().dequantize(self.id, blocks.ctypes.data, out.ctypes.data, out.size)

    def quantize_blocks(self, x: F32, out: U8) -> None:
        """Quantize blocks as rows of their own."""
        self.quantize_rows(x, out)

    def dequantize_blocks(self, data: U8, out: F32) -> None:
        """Expand blocks as rows of their own."""
        self.dequantize_rows(data, out)

    def _library(self) -> Ggml:
        library = require_ggml(f"type {self.name}")
        library.check(self.id, self.name, self.block_size, self.type_size)
        return library
