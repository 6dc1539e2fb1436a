"""Options that change a recipe, the same for every command that plans a file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipeline.commands._common import F

if TYPE_CHECKING:
    from pipeline.tuning import Tuning

_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


def tuning_options(command: F) -> F:
    """Add the options; the command gets `tuning`, and `quant` from the recipe's file where nobody said it."""

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        names = ("recipe_file", "tensor_types", "output_type", "embedding_type", "pure", "leave_output", "imatrix")
        recipe, given["tuning"] = _tuning(*(given.pop(name) for name in names))
        if "quant" in given and given["quant"] is None:
            given["quant"] = recipe
        return command(**given)

    for option in (
        click.option("--imatrix", type=_FILE, metavar="F", help="An importance matrix (`imatrix` makes one)."),
        click.option("--leave-output", is_flag=True, help="Leave the output tensor unquantized."),
        click.option("--pure", is_flag=True, help="One type for all matrices: no rules of the mix."),
        click.option("--embedding-type", metavar="TYPE", help="The type of the token embeddings."),
        click.option("--output-type", metavar="TYPE", help="The type of the output tensor."),
        click.option(
            "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
            help="The type of all matrices whose names it is found in; the first that fits wins.",
        ),
        click.option(
            "--recipe", "recipe_file", type=_FILE, metavar="FILE.toml", help="Your own recipe; see docs/recipes.md."
        ),
    ):  # fmt: skip
        run = option(run)
    return cast(F, run)


def _tuning(
    recipe_file: Path | None,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    leave_output: bool,
    imatrix: Path | None,
) -> tuple[str | None, Tuning]:
    """Join the options with those of the recipe's file; the command line wins."""
    from pipeline.quant import Options
    from pipeline.tuning import RecipeFile, Tuning, parse_type, read_importance, read_recipe_file

    file = read_recipe_file(recipe_file) if recipe_file else RecipeFile(None, Options())
    options = Options(
        (*(_tensor_type(text) for text in tensor_types), *file.options.tensor_types),
        parse_type(output_type) if output_type else file.options.output_type,
        parse_type(embedding_type) if embedding_type else file.options.embedding_type,
        pure or file.options.pure,
        leave_output or file.options.leave_output,
    )
    return file.recipe, Tuning(options, read_importance(imatrix) if imatrix else None)


def _tensor_type(text: str) -> tuple[str, str]:
    """Split REGEX=TYPE, at the first sign of equality as llama-quantize does."""
    from pipeline.errors import UsageError
    from pipeline.tuning import parse_tensor_type

    pattern, sign, kind = text.partition("=")
    if not (pattern and sign and kind):
        raise UsageError("not a --tensor-type", expected="REGEX=TYPE, such as attn_v=Q6_K", found=text)
    return parse_tensor_type(pattern, kind)
