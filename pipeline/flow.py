"""Read this first: the whole job, one line per stage.

`package` turns one model reference into one published artifact; `convert` and `quantize` are the same stages called
alone.  Each stage lives in its own package; this file only joins them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline import modelfile as modelfiles
from pipeline import plan as plans
from pipeline import prove, publish
from pipeline import report as reports
from pipeline.checkpoint import Checkpoint, TensorReader, open_checkpoint
from pipeline.encode import Output, encode
from pipeline.errors import ResourceError, UsageError
from pipeline.gguf import read_gguf
from pipeline.measure import LEVELS, ErrorMeter
from pipeline.provenance import SourceFile, SourceHashes, files_of
from pipeline.report import Report
from pipeline.runtime import runtime_at_hand
from pipeline.source import resolve
from pipeline.store import Store
from pipeline.tokenizer import Tokenizer, read_tokenizer
from pipeline.types import Blob, Check, Modelfile, Plan, Source


class Log(Protocol):
    """Where a flow says what it does (progress.Reporter, or a silent one)."""

    def stage(self, text: str) -> None:
        """Say that a stage begins."""

    def note(self, text: str) -> None:
        """Say something the user must know."""

    def bar(self, text: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show one long step."""


@dataclass(frozen=True)
class Job:
    """What to publish, and where.

    *quants* are recipe names, the first is also tagged "latest".  *name* is "model" or "namespace/model"; without it
    the alias or the repository names the model.  *errors* says which rows are compared with the source (a name in
    measure.LEVELS).
    """

    model: str
    quants: tuple[str, ...]
    target: str = "local"
    name: str | None = None
    proof: str = "quick"
    threads: int = 0
    with_template: bool = False
    templates: Path | None = None
    overrides: modelfiles.Overrides = field(default_factory=modelfiles.Overrides)
    errors: str = "sample"


@dataclass(frozen=True)
class Prepared:
    """A model whose headers are read: everything but the weights."""

    source: Source
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    blueprint: plans.Blueprint


def package(job: Job, log: Log) -> Report:
    """Turn one model reference into one published artifact.

    Raises:
        PipelineError: from any stage; nothing is published then, but by a ProofError, which comes after.
    """
    clock, meter = reports.Stopwatch(), make_meter(job)
    prepared = prepare(job.model, log)
    planned = [plans.make_plan(prepared.blueprint, name) for name in job.quants]
    modelfile = make_modelfile(prepared, job)
    clock.lap("read")
    with publish.open_target(job.target) as target, hashed_sources(prepared, planned) as hashes:
        with target.staging([plan.file_bytes for plan in planned]) as paths:
            blobs = write(planned, paths, log, job.threads, meter)
            clock.lap("write")
            sources = hashes.result()
            clock.lap("hash sources")
            release = make_release(job, prepared, planned, modelfile, paths, blobs)
            published = target.publish(release, log.stage)
            clock.lap("publish")
        checks = proof(job, prepared, target.store, published, log)
        clock.lap("prove")
    made = make_report(job, prepared, planned, blobs, modelfile, published, checks, sources, meter, clock)
    reports.save(made)
    prove.refuse_differences(published.names[0], checks)
    return made


def make_meter(job: Job) -> ErrorMeter | None:
    """Make what measures the errors that *job* asks for.

    Raises:
        UsageError: if *job* asks for something else than is known.
    """
    if job.errors not in LEVELS:
        raise UsageError("no such way to measure errors", expected=" or ".join(LEVELS), found=job.errors)
    every = LEVELS[job.errors]
    return ErrorMeter(every) if every else None


def hashed_sources(prepared: Prepared, planned: Sequence[Plan]) -> SourceHashes:
    """Make what hashes the files that *planned* are made of, while they are written."""
    weights = {source.path for tensor in planned[0].tensors if tensor.view for source in tensor.view.sources}
    return SourceHashes(prepared.source.folder, files_of(prepared.source.folder, weights))


def prepare(model: str, log: Log) -> Prepared:
    """Find a model, download it if need be, and read all its headers."""
    with log.bar(f"reading {model}") as progress:
        source = resolve(model, log=log.note, progress=lambda _file, done, total: progress(done, total or 0))
        checkpoint = open_checkpoint(source.folder)
        tokenizer = read_tokenizer(source.folder, dict(checkpoint.text_config()))
        blueprint = plans.from_checkpoint(checkpoint, tokenizer, source)
    for note in blueprint.notes:
        log.note(note)
    return Prepared(source, checkpoint, tokenizer, blueprint)


def convert(model: str, path: Path, dtype: str, log: Log, threads: int = 0) -> tuple[Plan, Blob]:
    """Write a checkpoint as an unquantized GGUF at *path*; *dtype* is a precision, or "auto" for the source's own."""
    prepared = prepare(model, log)
    plan = plans.make_plan(prepared.blueprint, dtype)
    return plan, write([plan], [path], log, threads)[0]


def quantize(gguf: Path, path: Path, recipe: str, log: Log, threads: int = 0) -> tuple[Plan, Blob]:
    """Write *gguf*, which is unquantized, again at *path* as *recipe* says."""
    if path.exists() and path.samefile(gguf):
        raise UsageError("the output would replace the input", where=path, hint="give another name with -o")
    plan = plans.make_plan(plans.from_gguf(read_gguf(gguf)), recipe)
    return plan, write([plan], [path], log, threads)[0]


def write(
    planned: Sequence[Plan], paths: Sequence[Path], log: Log, threads: int = 0, meter: ErrorMeter | None = None
) -> list[Blob]:
    """Read every source tensor once and write all planned files; *meter* measures their errors."""
    check_disk(planned, paths)
    names = ", ".join(plan.recipe for plan in planned)
    outputs = [Output(plan, path) for plan, path in zip(planned, paths, strict=True)]
    with TensorReader() as reader, log.bar(f"writing {names}") as progress:
        return encode(outputs, reader, threads=threads, progress=progress, meter=meter)


def check_disk(planned: Sequence[Plan], paths: Sequence[Path]) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ResourceError: if the files together are larger than the free space.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise UsageError("the folder of the output does not exist", where=path.parent, hint="make it first")
    needed = sum(plan.file_bytes for plan in planned)
    free = shutil.disk_usage(paths[0].parent).free
    if free < needed:
        raise ResourceError(
            "not enough disk space",
            where=paths[0].parent,
            expected=f"{needed:,} bytes free",
            found=f"{free:,} bytes free",
            hint="free some space, publish fewer quantizations at once, or move the store (GGUF_PIPELINE_STORE)",
        )


def make_modelfile(prepared: Prepared, job: Job) -> Modelfile:
    """Decide what the Modelfile says."""
    tokenizer = prepared.tokenizer
    return modelfiles.make_modelfile(
        chat_template=tokenizer.chat_template,
        generation_config=prepared.checkpoint.generation_config,
        eos_texts=tokenizer.eos_texts,
        licenses=prepared.checkpoint.licenses(),
        overrides=job.overrides,
        with_template=job.with_template,
        families=modelfiles.families(job.templates),
    )


def modelfile_text(job: Job, log: Log) -> str:
    """Give the text of the Modelfile for a model; its FROM names the GGUF that `convert` or `publish` would write."""
    prepared = prepare(job.model, log)
    return modelfiles.render_text(
        make_modelfile(prepared, job), f"./{model_name(job, prepared)[1]}-{job.quants[0]}.gguf", job.templates
    )


def model_name(job: Job, prepared: Prepared) -> tuple[str, str]:
    """Give the namespace and the name to publish under: the user's, else the alias or the repository's name."""
    return publish.split_name(job.name or prepared.source.alias or prepared.source.name)


def make_release(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    modelfile: Modelfile,
    paths: Sequence[Path],
    blobs: Sequence[Blob],
) -> publish.Release:
    """Gather what a target needs to publish; the first quantization is also tagged "latest"."""
    entries = tuple(
        publish.ReleaseEntry(
            tags=(plan.recipe, "latest") if plan is planned[0] else (plan.recipe,),
            gguf=path,
            gguf_blob=blob,
            architecture=prepared.blueprint.model.arch,
            parameter_count=prepared.blueprint.n_parameters,
            file_type=plan.recipe,
            template=modelfile.template,
            system=modelfile.system,
            params=modelfiles.params_layer(modelfile),
            messages=modelfile.messages,
            licenses=modelfile.licenses,
        )
        for plan, path, blob in zip(planned, paths, blobs, strict=True)
    )
    return publish.Release(*model_name(job, prepared), entries)


def proof(job: Job, prepared: Prepared, store: Store, published: publish.Published, log: Log) -> tuple[Check, ...]:
    """Prove what was published; each quantization once, by its own tag."""
    names = [name for name in published.names if name.tag in job.quants]
    tokenizer = prepared.tokenizer
    tokens = {"bos_token": tokenizer.bos or "", "eos_token": tokenizer.eos or ""}
    proven = prove.run(job.proof, store, names, chat_template=tokenizer.chat_template, tokens=tokens, log=log.stage)
    return (*proven, *published.checks)


def make_report(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    blobs: Sequence[Blob],
    modelfile: Modelfile,
    published: publish.Published,
    checks: tuple[Check, ...],
    sources: tuple[SourceFile, ...],
    meter: ErrorMeter | None,
    clock: reports.Stopwatch,
) -> Report:
    """Say what was made of what, and what was proven."""
    digests = {name.tag: (str(name), digest) for name, digest in zip(published.names, published.digests, strict=True)}
    files = tuple(
        reports.PublishedFile(
            *digests[plan.recipe],
            plan.recipe,
            blob.digest,
            blob.size,
            reports.count_types(plan),
            reports.describe_tensors(plan, meter.errors(number, plan.tensors) if meter else None),
        )
        for number, (plan, blob) in enumerate(zip(planned, blobs, strict=True))
    )
    return Report(
        model=job.model,
        source=reports.describe_source(prepared.source),
        sources=sources,
        files=files,
        checks=checks,
        notes=prepared.blueprint.notes,
        commands=published.commands,
        family=modelfile.family,
        pre_tokenizer=prepared.tokenizer.pre,
        tokenizer=reports.describe_tokenizer(prepared.blueprint.metadata),
        errors=job.errors,
        sample_every=meter.every if meter else None,
        llama_cpp=None if job.proof == "none" else runtime_at_hand(),
        timings=clock.stages(),
        seconds=clock.seconds,
        path=reports.report_path(files[0].name),
    )
