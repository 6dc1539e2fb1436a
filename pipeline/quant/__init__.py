"""Block quantization: tensor types, their bytes, and the recipes that choose among them.

In come rows of float32, out come the bytes that llama.cpp would write, for every input.  Adding a type is adding a
module that defines `TYPE`.
"""

from __future__ import annotations

from functools import cache

from pipeline import discover
from pipeline.errors import UnsupportedError
from pipeline.quant._base import BlockType
from pipeline.quant._kernels import first_nonfinite

__all__ = ["BlockType", "first_nonfinite", "get", "types"]


@cache
def _types() -> dict[str, BlockType]:
    return discover.load("pipeline.quant", "TYPE")


def types() -> dict[str, BlockType]:
    """Return all tensor types by name ("Q4_K")."""
    return dict(_types())


def get(name: str) -> BlockType:
    """Return the tensor type called *name*.

    Raises:
        UnsupportedError: if there is none.
    """
    table = _types()
    if name not in table:
        raise UnsupportedError(
            "no kernel for this tensor type", expected=f"one of {', '.join(sorted(table))}", found=name
        )
    return table[name]
