"""Commands for the stock of published models: run, list, rm, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.commands._common import json_option, print_json, size

if TYPE_CHECKING:
    from pipeline.chat import Conversation


@click.command()
@click.argument("ref")
@click.argument("prompt", required=False)
@click.option("--system", help="A system prompt for this conversation.")
@click.option("--ctx", type=click.IntRange(1), help="Context length in tokens; default: the model's own, at most 4096.")
def run(ref: str, prompt: str | None, system: str | None, ctx: int | None) -> None:
    """Chat with a published model (REF as `list` shows it) or a GGUF, through llama.cpp."""
    from pipeline import chat

    with chat.open_chat(ref, ctx, system) as conversation:
        click.echo(f"running on {conversation.kind}", err=True)
        if prompt is not None:
            _answer(conversation, prompt)
            return
        click.echo("an empty line or ctrl-D ends it", err=True)
        while text := _question():
            _answer(conversation, text)


def _question() -> str:
    try:
        return input(">>> ")
    except EOFError:
        return ""


def _answer(conversation: Conversation, text: str) -> None:
    conversation.ask(text, lambda piece: click.echo(piece, nl=False))
    click.echo("")


@click.command("list")
@click.argument("patterns", metavar="[REF]...", nargs=-1)
@json_option
def list_(patterns: tuple[str, ...], as_json: bool) -> None:
    """List the published models, or those of REFs, which may have * in them: name, id, quantization, size, source."""
    from pipeline.inventory import inventory
    from pipeline.store import Store, local_store_root

    store = Store(local_store_root())
    items = inventory(store, patterns)
    for problem in store.problems():
        click.echo(f"warning: {problem.path} names no model: {problem.reason}", err=True)
    if as_json:
        print_json([item.as_dict() for item in items])
        return
    if not items:
        click.echo("nothing is published yet; `gguf-pipeline publish demo` makes a start", err=True)
        return
    width = max(len(str(item.name)) for item in items)
    for one in items:
        shared = f"({size(one.shared)} shared)" if one.shared else ""
        columns = f"{one.name!s:<{width}}  {one.id}  {one.quantization or '':<8} {size(one.size):>10} {shared:<18}"
        click.echo(f"{columns} {one.modified.astimezone():%Y-%m-%d %H:%M}  {one.origin}".rstrip())


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@json_option
def rm(refs: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove published models and the blobs nobody else uses.

    A REF is a name as `list` shows it, or one with * in it, in quotes: 'demo:*'.  If one is not there, nothing is
    removed.
    """
    from pipeline.inventory import choose
    from pipeline.store import Store, local_store_root

    store = Store(local_store_root())
    names = choose(store, refs)
    blobs = store.remove(*names, waiting=lambda text: click.echo(text, err=True), dry_run=dry_run)
    freed = sum(blob.size for blob in blobs)
    if as_json:
        print_json({"names": [str(name) for name in names], "blobs": len(blobs), "size": freed, "removed": not dry_run})
        return
    for name in names:
        click.echo(f"{'would remove' if dry_run else 'removed'} {name}")
    click.echo(f"{size(freed)} {'would be' if dry_run else 'are'} free again ({len(blobs)} blobs)")


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@json_option
def gc(dry_run: bool, as_json: bool) -> None:
    """Remove blobs that no published model uses and files that a killed run left; what is under an hour old stays."""
    from pipeline.store import Store, local_store_root

    swept = Store(local_store_root()).gc(waiting=lambda text: click.echo(text, err=True), dry_run=dry_run)
    total = sum(one.size for one in swept)
    if as_json:
        files = [{"path": str(one.path), "size": one.size} for one in swept]
        print_json({"files": files, "size": total, "removed": not dry_run})
        return
    for one in swept:
        click.echo(f"{size(one.size):>10}  {one.path}")
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(swept)} files, {size(total)}")
