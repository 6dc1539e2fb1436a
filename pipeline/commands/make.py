"""Commands that make something: publish, plan, convert, quantize, modelfile, pull."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipeline.commands._common import (
    F,
    SizeType,
    adapter_option,
    engine_option,
    json_option,
    print_json,
    quant_option,
    recipes,
    reporter,
    requantize_option,
    size,
    threads_option,
)
from pipeline.commands._modelfile import modelfile_options
from pipeline.commands._tuning import tuning_options

if TYPE_CHECKING:
    from pipeline.modelfile import Overrides
    from pipeline.parts import Written
    from pipeline.tuning import Tuning

_FILE = click.Path(dir_okay=False, path_type=Path)


def _hashing_ahead(command: F) -> F:
    """Let what makes a file hash its source while the rest of it, a third of a second of Python, is still loaded."""

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        from pipeline.provenance import hashing_ahead

        with contextlib.nullcontext() if given["dry_run"] else hashing_ahead(given["model"]):
            return command(**given)

    return cast(F, run)


_split_option = click.option(
    "--split-size",
    "part_bytes",
    type=SizeType(),
    metavar="SIZE",
    help="Split into files with so much of the tensors at most (500M, 2G), as llama-gguf-split does; for llama.cpp.",
)


@click.command()
@click.argument("model")
@quant_option
@click.option(
    "--to",
    "targets",
    multiple=True,
    default=("local",),
    show_default="local",
    metavar="TARGET",
    help="local (our registry's folder), ollama, http(s)://HOST[:PORT], static:DIR or hf:ORG/NAME[+private]; may be "
    "given more than once.",
)
@click.option(
    "--name", metavar="[NS/]MODEL", help="Publish under this name; default: the alias or the repository's name."
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    help="One more tag, of the first quantization; with {quant} in it, of each.",
)
@click.option("--latest/--no-latest", default=True, help="Tag the first quantization 'latest' too (the default).")
@click.option("--again", is_flag=True, help="Make and publish it even if the target has just this already.")
@click.option(
    "--proof",
    type=click.Choice(["none", "quick", "full"]),
    default="quick",
    show_default=True,
    help="What to check; full pulls back what was published, as Ollama does, and asks it a question.",
)
@click.option(
    "--errors",
    type=click.Choice(["none", "sample", "all"]),
    default="sample",
    show_default=True,
    help="Rows to compare with the source, for the report; all takes up to twice the time.",
)
@click.option("--force", is_flag=True, help="Publish even if the proof finds a difference; the report keeps it.")
@click.option("--dry-run", is_flag=True, help="Show what would be published, and write nothing.")
@_hashing_ahead
@tuning_options
@requantize_option
@adapter_option
@modelfile_options
@threads_option
@engine_option
@json_option
def publish(
    model: str, quant: str | None, targets: tuple[str, ...], name: str | None, tags: tuple[str, ...], latest: bool,
    again: bool, proof: str, errors: str, force: bool, dry_run: bool, requantize: bool, adapter: Path | None,
    overrides: Overrides, with_template: bool, templates: Path | None, threads: int, engine: str, as_json: bool,
    tuning: Tuning,
) -> None:  # fmt: skip
    """Package MODEL and publish it for `ollama pull`."""
    from pipeline import pull_back
    from pipeline.commands import _show
    from pipeline.job import Job

    job = Job(
        model, recipes(quant), targets=targets, name=name, tags=tags, latest=latest, again=again, proof=proof,
        errors=errors, threads=threads, with_template=with_template, templates=templates, requantize=requantize,
        adapter=adapter, overrides=overrides, force=force, engine=engine, tuning=tuning,
    )  # fmt: skip
    log = reporter(quiet=as_json)
    if dry_run:
        from pipeline.preview import describe_publication, refuse_impossible

        would = describe_publication(job, log)
        print_json(would) if as_json else _show.preview(would)
        refuse_impossible(would)
        return
    report = pull_back.package(job, log)
    print_json(report.as_dict()) if as_json else _show.report(report)


@click.command()
@click.argument("model")
@quant_option
@click.option(
    "--ctx", type=click.IntRange(1), default=4096, show_default=True, help="Context for the memory figure, in tokens."
)
@tuning_options
@requantize_option
@adapter_option
@threads_option
@engine_option
@json_option
def plan(
    model: str, quant: str | None, ctx: int, requantize: bool, adapter: Path | None, threads: int, engine: str,
    as_json: bool, tuning: Tuning,
) -> None:  # fmt: skip
    """Show what would be written: every tensor's type, the exact size, the disk, memory and time needed."""
    from pipeline import flow
    from pipeline.commands import _show
    from pipeline.preview import describe_plans, problems, refuse_impossible

    quants = recipes(quant)
    with flow.prepare(model, reporter(quiet=as_json), requantize=requantize, adapter=adapter) as prepared:
        shown = describe_plans(prepared, flow.choose_quants(quants, prepared), ctx, threads, engine, tuning)
    if as_json:
        refusals = [str(problem) for problem in problems(shown)]
        print_json([one | {"refusals": refusals} for one in shown])
    else:
        _show.plans(shown)
    refuse_impossible(shown)


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_FILE, required=True, help="The GGUF to write.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f16", "bf16", "f32"]),
    default="auto",
    show_default=True,
    help="auto keeps the checkpoint's own precision.",
)
@adapter_option
@_split_option
@threads_option
@engine_option
@json_option
def convert(
    model: str, output: Path, dtype: str, adapter: Path | None, part_bytes: int | None, threads: int, engine: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL as an unquantized GGUF."""
    from pipeline import flow

    kind, log = dtype if dtype == "auto" else dtype.upper(), reporter(quiet=as_json)
    made = flow.convert(model, output, kind, log, threads, adapter=adapter, part_bytes=part_bytes, engine=engine)
    _written(made, as_json)


@click.command()
@click.argument("gguf", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("-o", "--output", type=_FILE, required=True, help="The GGUF to write.")
@click.option("--quant", metavar="Q", help="The quantization, such as Q4_K_M.")
@tuning_options
@requantize_option
@_split_option
@threads_option
@engine_option
@json_option
def quantize(
    gguf: Path, output: Path, quant: str | None, requantize: bool, part_bytes: int | None, threads: int, engine: str,
    as_json: bool, tuning: Tuning,
) -> None:  # fmt: skip
    """Quantize a GGUF into the bytes that llama-quantize would write; of a split model, name any part."""
    from pipeline import flow
    from pipeline.errors import UsageError

    names = recipes(quant)
    if len(names) != 1:
        raise UsageError("quantize writes one file", expected="one quantization, with --quant or --recipe", found=quant)
    log = reporter(quiet=as_json)
    made = flow.quantize(
        gguf, output, names[0], log, threads, requantize=requantize, part_bytes=part_bytes, engine=engine, tuning=tuning
    )
    _written(made, as_json)


def _written(made: Written, as_json: bool) -> None:
    files = [{"path": str(path), "size": blob.size, "digest": blob.digest} for path, blob in made.files]
    if as_json:
        about = {"recipe": made.plan.recipe, "tensors": len(made.plan.tensors)}
        print_json(files[0] | about if len(files) == 1 else about | {"parts": files})
        return
    for path, blob in made.files:
        click.echo(f"{path}  {made.plan.recipe}  {size(blob.size)}  {blob.digest}")


@click.command()
@click.argument("model")
@quant_option
@click.option("-o", "--output", type=_FILE, help="Write it here instead of printing it.")
@adapter_option
@modelfile_options
def modelfile(
    model: str, quant: str | None, output: Path | None, adapter: Path | None, overrides: Overrides,
    with_template: bool, templates: Path | None,
) -> None:  # fmt: skip
    """Print the Modelfile for MODEL, for use with `ollama create`."""
    from pipeline import flow
    from pipeline.job import Job

    names = recipes(quant)
    job = Job(
        model,
        names,
        with_template=with_template,
        templates=templates,
        overrides=overrides,
        adapter=adapter,
    )
    text = flow.modelfile_text(job, reporter())
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)


def _write(path: Path, text: str) -> None:
    from pipeline import whole
    from pipeline.errors import UsageError

    if not path.parent.is_dir():
        raise UsageError("the folder of the output does not exist", where=path, hint="make it first")
    try:
        whole.write_text(path, text)
    except OSError as e:
        raise UsageError(
            "the file cannot be written", where=path, found=e.strerror or e, hint="give another name with -o"
        ) from e


@click.command()
@click.argument("model")
@click.option("--revision", metavar="REV", help="A branch, tag or commit; default: the alias's branch, else main.")
@click.option("--verify", is_flag=True, help="Hash files again that are there already.")
@json_option
def pull(model: str, revision: str | None, verify: bool, as_json: bool) -> None:
    """Download MODEL into the Hugging Face cache, only the files that are needed, and record its commit.

    Other commands take the recorded commit; `pull` asks the Hub again what the branch is now.
    """
    from pipeline.source import resolve

    log = reporter(quiet=as_json)
    with log.bar(f"pulling {model}") as progress:
        source = resolve(
            model,
            revision=revision,
            update=True,
            rehash=verify,
            log=log.note,
            progress=lambda _file, done, total: progress(done, total or 0),
        )
    if as_json:
        print_json(
            {
                "name": source.name,
                "folder": str(source.folder),
                "repository": source.repository,
                "revision": source.revision,
                "commit": source.commit,
            }
        )
    else:
        click.echo(f"{source.folder}" + (f"  {source.repository}@{source.commit}" if source.repository else ""))
