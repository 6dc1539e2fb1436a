"""The options that say what is in the Modelfile, for the commands that make one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.modelfile import Overrides

_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
_FOLDER = click.Path(file_okay=False, exists=True, path_type=Path)

_OPTIONS = (
    click.option("--system", help="The system prompt."),
    click.option("--num-ctx", type=click.IntRange(1), help="Context length that Ollama shall use, in tokens."),
    click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="A PARAMETER; may repeat."),
    click.option(
        "--message", "messages", nargs=2, multiple=True, metavar="ROLE TEXT",
        help="A MESSAGE that every conversation starts with; may repeat.",
    ),
    click.option(
        "--license", "licenses", type=_FILE, multiple=True, metavar="FILE",
        help="A LICENSE, in place of the checkpoint's; may repeat.",
    ),
    click.option("--requires", metavar="VERSION", help="The oldest Ollama that shall run it."),
    click.option("--renderer", metavar="NAME", help="A RENDERER of Ollama's own, in place of a template."),
    click.option("--parser", metavar="NAME", help="A PARSER of Ollama's own."),
    click.option("--template", "template", type=_FILE, metavar="FILE", help="A Go TEMPLATE of your own."),
    click.option("--fim/--no-fim", default=None, help="Offer `insert` (fill in the middle); default: where trained."),
)  # fmt: skip
_SHARED = (
    click.option(
        "--with-template", is_flag=True, help="Add a Go TEMPLATE; by default Ollama uses the model's own Jinja."
    ),
    click.option("--templates", type=_FOLDER, help="A folder of your own templates; they win over ours."),
)
_NAMES = (
    "system", "num_ctx", "parameters", "messages", "licenses", "requires", "renderer", "parser", "template", "fim",
)  # fmt: skip


def modelfile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to *command*, which gets what they say as `overrides`, and `with_template` and `templates`."""

    @wraps(command)
    def with_overrides(*arguments: Any, **options: Any) -> Any:
        said = {name: options.pop(name) for name in _NAMES}
        return command(*arguments, overrides=_overrides(**said), **options)

    decorated: Callable[..., Any] = with_overrides
    for option in reversed((*_OPTIONS, *_SHARED)):
        decorated = option(decorated)
    return decorated


def _overrides(
    *, parameters: tuple[str, ...], licenses: tuple[Path, ...], template: Path | None, **rest: Any
) -> Overrides:
    from pipeline.modelfile import Overrides, parse_parameter, read_text_file

    overrides = Overrides(
        parameters=tuple(parse_parameter(text) for text in parameters),
        licenses=tuple(read_text_file(path, "--license") for path in licenses) or None,
        template=None if template is None else read_text_file(template, "--template"),
        **rest,
    )
    overrides.check()
    return overrides
