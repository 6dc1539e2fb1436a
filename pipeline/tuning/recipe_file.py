r"""People's own recipes: a small TOML file, with the names that the command line has.

recipe = "Q4_K_M"              # what --quant says where nothing else does
output-type = "Q8_0"
embedding-type = "Q6_K"
pure = false
leave-output = false

[tensor-types]                 # regular expressions, searched in the names of tensors; the first that is found wins
'blk\.[0-3]\.attn_v' = "Q8_0"
'ffn_down' = "Q5_K"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import quant
from pipeline.errors import FormatError, UsageError
from pipeline.strict_json import read_text

_MAX_BYTES = 1 << 20
_FIELDS = {
    "recipe": str, "output-type": str, "embedding-type": str, "pure": bool, "leave-output": bool, "tensor-types": dict
}  # fmt: skip


@dataclass(frozen=True)
class RecipeFile:
    """What such a file says: the *recipe* to start from, if it names one, and the options."""

    recipe: str | None
    options: quant.Options


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe from TOML.

    Raises:
        FormatError: if it cannot be read, is not TOML, or says something that no recipe has.
    """
    try:
        values = tomllib.loads(read_text(path, _MAX_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise FormatError("not a TOML file", where=path, found=e, hint="see docs/recipes.md for an example") from e
    for key, value in values.items():
        if key not in _FIELDS or type(value) is not _FIELDS[key]:
            expected = f"a {_FIELDS[key].__name__}" if key in _FIELDS else ", ".join(_FIELDS)
            raise FormatError(
                "not what a recipe says", where=f"{path}, {key}", expected=expected, found=repr(value)[:80]
            )
    try:
        return RecipeFile(_recipe(values.get("recipe")), _options(values))
    except UsageError as e:
        raise FormatError(e.what, where=path, expected=e.expected, found=e.found) from e


def _recipe(name: str | None) -> str | None:
    if name is None:
        return None
    upper = quant.ALIASES.get(name.upper(), name.upper())
    if upper not in quant.recipes():
        raise UsageError("no such recipe", expected=", ".join(sorted(quant.recipes())), found=name)
    return upper


def _options(values: dict[str, Any]) -> quant.Options:
    def type_(key: str) -> str | None:
        return parse_type(values[key]) if key in values else None

    return quant.Options(
        tuple(parse_tensor_type(pattern, kind) for pattern, kind in values.get("tensor-types", {}).items()),
        type_("output-type"),
        type_("embedding-type"),
        values.get("pure", False),
        values.get("leave-output", False),
    )


def parse_type(name: object) -> str:
    """Return ggml's name of a tensor type that can be written.

    Raises:
        UsageError: if there is no such type.
    """
    upper = name.upper() if isinstance(name, str) else ""
    if upper not in quant.types():
        raise UsageError("no such tensor type", expected=", ".join(sorted(quant.types())), found=name)
    return upper


def parse_tensor_type(pattern: str, kind: object) -> tuple[str, str]:
    """Check a regular expression and a type.

    Raises:
        UsageError: if one is wrong.
    """
    quant.compile_pattern(pattern)
    return pattern, parse_type(kind)
