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
@json_option
def list_(as_json: bool) -> None:
    """List the published models."""
    from pipeline.store import Store, local_store_root

    store = Store(local_store_root())
    entries = store.list()
    for problem in store.problems():
        click.echo(f"warning: {problem.path} names no model: {problem.reason}", err=True)
    if as_json:
        print_json(
            [
                {"name": str(e.name), "digest": e.digest, "size": e.size, "modified": e.modified.isoformat()}
                for e in entries
            ]
        )
        return
    if not entries:
        click.echo("nothing is published yet; `gguf-pipeline publish demo` makes a start", err=True)
    width = max((len(str(e.name)) for e in entries), default=0)
    for e in entries:
        click.echo(f"{e.name!s:<{width}}  {e.id}  {size(e.size):>10}  {e.modified:%Y-%m-%d %H:%M}")


@click.command()
@click.argument("refs", nargs=-1, required=True)
def rm(refs: tuple[str, ...]) -> None:
    """Remove published models (REFs as `list` shows them) and the blobs nobody else uses."""
    from pipeline.store import Store, local_name, local_store_root

    store = Store(local_store_root())
    for name in [local_name(ref) for ref in refs]:
        removed = store.remove(name)
        click.echo(f"removed {name} ({len(removed)} blobs, {size(sum(b.size for b in removed))})")


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
