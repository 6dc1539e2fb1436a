"""Commands that only look: models, inspect, verify, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._common import (
    adapter_option,
    engine_option,
    gguf_path,
    json_option,
    print_json,
    published,
    reporter,
    threads_option,
)
from pipeline.commands._tuning import tuning_options

if TYPE_CHECKING:
    from pipeline.doctor import Finding
    from pipeline.tuning import Tuning


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
@click.argument("what", metavar="F.gguf|REF|REPORT.json")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option(
    "--report", is_flag=True, help="Show the publication's report: where it came from, and the error of each tensor."
)
@json_option
def inspect(what: str, tensors: bool, report: bool, as_json: bool) -> None:
    """Show what a GGUF holds, or what the report of a publication says of it."""
    from pipeline.commands import _show, _show_report

    if report:
        found, manifest = _find_report(what)
        print_json(found) if as_json else _show_report.report(found, manifest)
        return
    from pipeline.gguf import describe, read_gguf

    described = describe(read_gguf(gguf_path(what)))
    print_json(described) if as_json else _show.gguf(described, tensors=tensors)


def _find_report(what: str) -> tuple[dict[str, Any], str | None]:
    """Return the report, and the manifest's digest where one publication of it was named."""
    from pipeline import report
    from pipeline.errors import UsageError
    from pipeline.store.blobs import hash_bytes

    model = published(what)
    if model is None:
        return report.load(Path(what)), None
    store, name = model
    manifest = hash_bytes(store.manifest_bytes(name)).digest
    found = report.find(manifest)
    if found is None:
        raise UsageError(
            "there is no report of this publication",
            where=name,
            expected=f"a file in {report.reports_folder()}",
            hint="publish it again, or name the report's file",
        )
    return found, manifest


@click.command()
@click.argument("what", metavar="F.gguf|REF")
@click.option("--source", metavar="MODEL", help="What it was made of; tensors are derived again from there.")
@click.option("--all", "every", is_flag=True, help="Derive every tensor again.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="N",
    help="Derive so many matrices again, and all vectors.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses them.")
@tuning_options
@adapter_option
@threads_option
@engine_option
@json_option
def verify(
    what: str, source: str | None, every: bool, sample: int, seed: int, adapter: Path | None, threads: int,
    engine: str, as_json: bool, tuning: Tuning,
) -> None:  # fmt: skip
    """Prove a GGUF: read it strictly, hash a publication's blobs, and derive tensors again from the source."""
    from pipeline import verify as proofs
    from pipeline.commands import _show

    path, model = gguf_path(what), published(what)
    if source is None:
        found = proofs.verify_file(path)
    else:
        log, n = reporter(quiet=as_json), None if every else sample
        found = proofs.verify_against(
            path, source, log, sample=n, seed=seed, threads=threads, engine=engine, adapter=adapter, tuning=tuning
        )
    if model is not None:
        found = proofs.verify_publication(*model, found)
    print_json(found.as_dict()) if as_json else _show.checks(found.checks)
    found.refuse_differences()


@click.command()
@click.option(
    "--tokenizer",
    "model",
    metavar="MODEL",
    help="Compare the vocabulary that MODEL gets with its own tokenizer, on tricky texts; no weights are fetched.",
)
@click.option(
    "--registry", metavar="URL", help="Say only whether `ollama pull` works from this registry, and what it lacks."
)
@json_option
def doctor(model: str | None, registry: str | None, as_json: bool) -> None:
    """Say what is installed, what is missing, and how to get it; or whether a model's tokenizer comes out right."""
    from pipeline import doctor as doctors
    from pipeline.commands import _show

    if model is not None:
        compared = doctors.examine_tokenizer(model, reporter(quiet=as_json))
        print_json({"model": model, **compared.as_dict()}) if as_json else _show.comparison(compared)
        doctors.refuse_differences(model, compared)
        return
    found = doctors.examine() if registry is None else [doctors.examine_registry(registry)]
    print_json([one.as_dict() for one in found]) if as_json else _findings(found, hints=registry is None)
    if registry is not None:
        doctors.refuse_fault(found[0])


def _findings(found: Sequence[Finding], *, hints: bool) -> None:
    width = max(len(one.name) for one in found)
    for one in found:
        click.echo(f"{'ok  ' if one.ok else 'MISS'} {one.name:<{width}}  {one.detail}")
        if one.fix and (one.ok or hints):
            click.echo(f"     {'':<{width}}  -> {one.fix}")
