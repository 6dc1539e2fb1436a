"""Commands that only look: models, inspect, doctor."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._common import json_option, print_json


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the aliases that can be given as MODEL."""
    from dataclasses import asdict

    from pipeline.source import aliases

    rows = list(aliases.load().values())
    if as_json:
        print_json(
            [asdict(row) | {"folder": row.folder and str(row.folder), "origin": str(row.origin)} for row in rows]
        )
        return
    for row in rows:
        click.echo(f"{row.name:<22} {row.quant:<8} {row.repo or row.folder}  {row.description}")


@click.command()
@click.argument("gguf", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def inspect(gguf: Path, tensors: bool, as_json: bool) -> None:
    """Show what a GGUF file holds."""
    from pipeline.commands import _show
    from pipeline.gguf import describe, read_gguf

    described = describe(read_gguf(gguf))
    print_json(described) if as_json else _show.gguf(described, tensors=tensors)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing, and how to get it."""
    from pipeline.doctor import examine

    found = examine()
    if as_json:
        print_json([one.as_dict() for one in found])
        return
    width = max(len(one.name) for one in found)
    for one in found:
        click.echo(f"{'ok  ' if one.ok else 'MISS'} {one.name:<{width}}  {one.detail}")
        if one.fix:
            click.echo(f"     {'':<{width}}  -> {one.fix}")
