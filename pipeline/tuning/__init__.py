"""What the user decides beside the recipe: types by pattern, said or from a file, and an importance matrix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.quant import Options
from pipeline.tuning.importance import Importance, read_importance
from pipeline.tuning.recipe_file import RecipeFile, parse_tensor_type, parse_type, read_recipe_file

__all__ = [
    "Importance",
    "RecipeFile",
    "Tuning",
    "parse_tensor_type",
    "parse_type",
    "read_importance",
    "read_recipe_file",
]


@dataclass(frozen=True)
class Tuning:
    """How a recipe is changed: *options* choose types, *importance* weighs the columns of matrices."""

    options: Options = field(default_factory=Options)
    importance: Importance | None = None

    @property
    def effective_options(self) -> Options:
        """The options, with what they depend on."""
        return replace(self.options, has_importance=self.importance is not None)

    def describe(self) -> tuple[str, ...]:
        """Return what is changed, one line each, as the command line says it."""
        matrix = (self.importance.describe(),) if self.importance else ()
        return (*self.options.describe(), *matrix)
