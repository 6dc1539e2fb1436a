"""Block quantization: tensor types, their bytes, and the recipes that choose among them.

In come rows of float32, out come the bytes that llama.cpp would write, for every input.  Adding a type is adding a
module that defines `TYPE`; adding a recipe is adding a row to the table in `_recipes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from pipeline import discover
from pipeline.errors import UnsupportedError
from pipeline.quant._assign import (
    Options,
    TensorFacts,
    assign,
    compile_pattern,
    requires_importance,
    tensor_order_key,
)
from pipeline.quant._base import SCRATCH_BYTES, BlockType
from pipeline.quant._engines import (
    AUTO,
    Compared,
    Engine,
    NumpyEngine,
    check_engine,
    describe_fast,
    fallback_note,
    get_engine,
)
from pipeline.quant._native import NativeType
from pipeline.quant._recipes import ALIASES, ModelFacts, Recipe, recipes

__all__ = [
    "ALIASES",
    "AUTO",
    "SCRATCH_BYTES",
    "BlockType",
    "Compared",
    "Engine",
    "ModelFacts",
    "NativeType",
    "NumpyEngine",
    "Options",
    "Recipe",
    "TensorFacts",
    "assign_types",
    "check_engine",
    "compile_pattern",
    "describe_fast",
    "fallback_note",
    "get",
    "get_engine",
    "recipes",
    "requires_importance",
    "tensor_order_key",
    "types",
]


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


def assign_types(
    recipe: Recipe, tensors: Sequence[TensorFacts], model: ModelFacts, options: Options | None = None
) -> list[str]:
    """Return the type of each of *tensors*, as `llama-quantize` chooses it.

    *tensors* are all tensors of the model in llama-quantize's order, that of `tensor_order_key`.

    Raises:
        FormatError: if a feed-forward tensor of a model with experts does not name its layer.
        UnsupportedError: if no type fits the rows of a tensor.
        UsageError: if an option is no regular expression.
    """
    return assign(recipe, tensors, model, options or Options(), _types())
