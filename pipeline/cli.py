"""The command line: parse, call, print.  Library errors become one clear message and an exit code, only here."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from pipeline import __version__
from pipeline.commands import look, make, stock
from pipeline.errors import PipelineError

_EPILOG = """\b
MODEL is an alias (see `models`), org/name[@revision] on the Hugging Face Hub, or a folder.
Exit codes: 0 done, 2 wrong usage, 3 bad or unsupported input, 4 source or target unreachable or refused,
            5 not enough disk or memory, 1 anything else."""


class _Group(click.Group):
    """Commands in the order in which a person meets them, and our errors shown as messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            _fail(error)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(130)


def _fail(error: PipelineError) -> NoReturn:
    head, *rest = str(error).split("\n")
    plain = False if os.environ.get("NO_COLOR") else None
    click.echo(click.style("error: ", fg="red", bold=True) + head, err=True, color=plain)
    for line in rest:
        click.echo(line, err=True)
    sys.exit(error.exit_code)


@click.group(
    cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="gguf-pipeline")
def main() -> None:
    """Get a Hugging Face model into Ollama: checkpoint -> GGUF -> quantized -> Modelfile -> registry."""


for command in (
    make.publish,
    make.plan,
    make.convert,
    make.quantize,
    make.modelfile,
    make.pull,
    stock.serve,
    stock.run,
    stock.list_,
    stock.rm,
    look.models,
    look.inspect,
    look.verify,
    look.doctor,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
