"""Read this first: the whole job, one line per stage.

`package` turns one model reference into one published artifact; `convert` and `quantize` are the same stages called
alone.  Each stage lives in its own package; this file only joins them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import arch as archs
from pipeline import blueprint as blueprints
from pipeline import crash, data, prove, publish, republish
from pipeline import modelfile as modelfiles
from pipeline import plan as plans
from pipeline import report as reports
from pipeline.checkpoint import TensorReader, merge_adapter, open_checkpoint
from pipeline.encode import Output, encode
from pipeline.errors import ResourceError, UsageError
from pipeline.gguf import copy_file, read_parts
from pipeline.job import Job, Prepared
from pipeline.measure import LEVELS, ErrorMeter
from pipeline.parts import SplitModel, Written
from pipeline.provenance import SourceFile, SourceHashes, files_of, weights_of
from pipeline.report import Report
from pipeline.runtime import runtime_at_hand
from pipeline.source import OpenSource, Weights, aliases, open_source
from pipeline.tokenizer import read_tokenizer
from pipeline.tuning import Tuning
from pipeline.types import Blob, Check, Log, Modelfile, Plan

DEFAULT_QUANT = "Q4_K_M"


def package(job: Job, log: Log) -> Report:
    """Turn one model reference into one published artifact.

    Raises:
        PipelineError: from any stage; nothing is published then.
    """
    clock = reports.Stopwatch()
    check_job(job)
    reports.require_room()
    meter = ErrorMeter(every) if (every := LEVELS[job.errors]) else None
    with (
        publish.open_target(job.target) as target,
        prepare(job.model, log, "stream", requantize=job.requantize, adapter=job.adapter) as prepared,
    ):
        job = replace(job, quants=choose_quants(job.quants, prepared))
        planned = [plans.make_plan(prepared.blueprint, name, job.tuning) for name in job.quants]
        say_notes(planned, prepared.blueprint.notes, log)
        modelfile = make_modelfile(prepared, job)
        target.check(*model_name(job, prepared), job.quants)
        clock.lap("read")
        crash.point("headers read")
        with target.staging([plan.file_bytes for plan in planned]) as paths, hashed(prepared, planned) as hashes:
            crash.point("staging made")
            blobs = write(planned, paths, log, job.threads, prepared.opened, meter)
            clock.lap("write")
            sources = hashes.result()
            clock.lap("hash sources")
            checks = proof(job, prepared, modelfile, list(zip(job.quants, paths, blobs, strict=True)), log)
            clock.lap("prove")
            crash.point("files proven")
            release = make_release(job, prepared, planned, modelfile, paths, blobs)
            published = target.publish(release, log)
            crash.point("all named")
        checks += published.checks
        clock.lap("publish")
    made = make_report(job, prepared, planned, blobs, modelfile, published, checks, sources, meter, clock)
    reports.save(made)
    return made


def say_notes(planned: Sequence[Plan], known: Sequence[str], log: Log) -> None:
    """Say what plans note beyond the notes that are *known*."""
    for note in dict.fromkeys(note for plan in planned for note in plan.notes if note not in known):
        log.note(note)


def check_job(job: Job) -> None:
    """Refuse what cannot work before anything is fetched.

    Raises:
        UsageError: if the name, the proof, the way to measure errors or a setting of the runtime is wrong.
    """
    if job.name is not None:
        publish.require_name(job.name)
    if job.proof not in prove.LEVELS:
        raise UsageError("no such proof", expected=" or ".join(prove.LEVELS), found=job.proof)
    if job.errors not in LEVELS:
        raise UsageError("no such way to measure errors", expected=" or ".join(LEVELS), found=job.errors)
    if job.proof != "none":
        runtime_at_hand()


@contextmanager
def prepare(
    model: str, log: Log, weights: Weights = "none", *, requantize: bool = False, adapter: Path | None = None
) -> Iterator[Prepared]:
    """Find a model and read all its headers, and those of the *adapter* to merge into it.

    *weights* are downloaded not at all, or, with "stream", while the caller works.
    """
    with ExitStack() as stack:
        with log.bar(f"reading {model}") as progress:
            # Streamed weights arrive long after this bar is gone.
            show = None if weights == "stream" else lambda _file, done, total: progress(done, total or 0)
            opened = stack.enter_context(open_source(model, weights=weights, log=log.note, progress=show))
            if opened.source.gguf and adapter:
                raise UsageError("an adapter is merged into a checkpoint, not into a GGUF", where=adapter, found=model)
            prepared = _prepare_gguf(opened, requantize) if opened.source.gguf else _prepare_checkpoint(opened, adapter)
        for note in prepared.blueprint.notes:
            log.note(note)
        yield prepared


def _prepare_checkpoint(opened: OpenSource, adapter: Path | None) -> Prepared:
    source = opened.source
    checkpoint = open_checkpoint(source.folder, opened.remote_headers)
    if adapter:
        adapter = adapter.resolve()
        checkpoint = merge_adapter(checkpoint, adapter, source.repository or source.name)
        source = replace(source, name=f"{source.name}-{adapter.name}", adapter=adapter)
    arch = archs.match(checkpoint.config)
    config = archs.with_padding(arch, arch.config(checkpoint.config), checkpoint.tensors)
    tokenizer = read_tokenizer(source.folder, config.raw)
    blueprint = blueprints.from_checkpoint(checkpoint, tokenizer, source)
    opened = replace(opened, source=source)
    return Prepared(
        opened, tokenizer, blueprint, checkpoint.generation_config, checkpoint.licenses(), checkpoint.tensors
    )


def _prepare_gguf(opened: OpenSource, requantize: bool) -> Prepared:
    assert opened.source.gguf is not None  # noqa: S101  the caller looked
    model = republish.read_gguf_model(opened.source.gguf, requantize=requantize)
    return Prepared(opened, model.tokenizer, model.blueprint, model.generation_config, model.licenses)


def choose_quants(quants: tuple[str, ...], prepared: Prepared) -> tuple[str, ...]:
    """Give *quants*, or where nobody said any: the type that a GGUF has, else what the alias names."""
    if quants:
        return quants
    if prepared.blueprint.finished:
        return (prepared.blueprint.finished.recipe,)
    row = aliases.load().get(prepared.source.alias or "")
    return (row.quant if row else DEFAULT_QUANT,)


def convert(
    model: str,
    path: Path,
    dtype: str,
    log: Log,
    threads: int = 0,
    *,
    adapter: Path | None = None,
    part_bytes: int | None = None,
) -> Written:
    """Write a checkpoint as an unquantized GGUF at *path*; *dtype* is a precision, or "auto" for the source's own.

    With *part_bytes*, it is split into files with so many bytes of tensors at most.
    """
    with prepare(model, log, "stream", adapter=adapter) as prepared:
        if prepared.source.gguf:
            raise UsageError("is a GGUF already", where=model, hint="quantize writes it in another type")
        plan = plans.make_plan(prepared.blueprint, dtype)
        cut = SplitModel.of(plan, path, part_bytes)
        return cut.write(lambda planned, paths: write(planned, paths, log, threads, prepared.opened))


def quantize(
    gguf: Path,
    path: Path,
    recipe: str,
    log: Log,
    threads: int = 0,
    *,
    requantize: bool = False,
    part_bytes: int | None = None,
    tuning: Tuning | None = None,
) -> Written:
    """Write *gguf*, which is unquantized or may be quantized again, once more at *path* as *recipe* says.

    One part of a split model stands for all of them.  *part_bytes* is as for `convert`; *tuning* changes
    the recipe.
    """
    parts = read_parts(gguf)
    plan = plans.make_plan(blueprints.from_gguf(parts, requantize=requantize), recipe, tuning)
    say_notes([plan], (), log)
    cut = SplitModel.of(plan, path, part_bytes)
    cut.refuse_to_replace([part.path for part in parts])
    return cut.write(lambda planned, paths: write(planned, paths, log, threads))


def hashed(prepared: Prepared, planned: Sequence[Plan]) -> SourceHashes:
    """Make what hashes the files that *planned* are made of, while they are written."""
    source, weights = prepared.source, weights_of(planned[0].tensors)
    prepared.opened.prefer(weights)
    folders = () if source.gguf else (source.folder, source.adapter) if source.adapter else (source.folder,)
    return SourceHashes(source.folder, files_of(folders, weights), prepared.opened.wait)


def write(
    planned: Sequence[Plan],
    paths: Sequence[Path],
    log: Log,
    threads: int = 0,
    opened: OpenSource | None = None,
    meter: ErrorMeter | None = None,
) -> list[Blob]:
    """Read every source tensor once and write all planned files; copy those that exist already.

    Weights of *opened* may still be on their way; *meter* measures the errors of what is encoded.
    """
    check_disk(planned, paths)
    written: dict[Path, Blob] = {}
    outputs = [Output(plan, path) for plan, path in zip(planned, paths, strict=True)]
    for out in outputs:
        if out.plan.verbatim:
            with log.bar(f"copying {out.plan.verbatim.name}") as progress:
                written[out.path] = copy_file(out.plan.verbatim, out.path, out.plan.file_bytes, progress)
    rest = [out for out in outputs if out.path not in written]
    if rest:
        written |= {out.path: blob for out, blob in zip(rest, _encode(rest, log, threads, opened, meter), strict=True)}
    return [written[path] for path in paths]


def _encode(
    outputs: Sequence[Output], log: Log, threads: int, opened: OpenSource | None, meter: ErrorMeter | None
) -> list[Blob]:
    if opened is not None:
        opened.prefer(weights_of(outputs[0].plan.tensors))
    names = ", ".join(out.plan.recipe for out in outputs)
    with TensorReader(ready=opened.wait if opened else None) as reader, log.bar(f"writing {names}") as progress:
        stop = opened.stop if opened else None
        return encode(outputs, reader, threads=threads, progress=progress, on_error=stop, meter=meter)


def check_disk(planned: Sequence[Plan], paths: Sequence[Path]) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        AccessError: if a folder cannot be written.
        ResourceError: if the files together are larger than the free space.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise UsageError("the folder of the output does not exist", where=path.parent, hint="make it first")
        data.require_writable(path.parent, "the folder of the output cannot be written", "choose another one with -o")
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
        generation_config=prepared.generation_config,
        eos_texts=tokenizer.eos_texts,
        licenses=prepared.licenses,
        overrides=job.overrides,
        with_template=job.with_template,
        families=modelfiles.families(job.templates),
        family_name=prepared.source.family,
    )


def modelfile_text(job: Job, log: Log) -> str:
    """Give the text of the Modelfile for a model; its FROM names the GGUF that `convert` or `publish` would write."""
    with prepare(job.model, log, adapter=job.adapter) as prepared:
        finished, quant = prepared.blueprint.finished, choose_quants(job.quants, prepared)[0]
        is_there = finished is not None and finished.recipe == quant
        from_ = str(finished.path) if finished and is_there else f"./{model_name(job, prepared)[1]}-{quant}.gguf"
        return modelfiles.render_text(make_modelfile(prepared, job), from_, job.templates)


def model_name(job: Job, prepared: Prepared) -> tuple[str, str]:
    """Give the namespace and the name to publish under: the user's, else the alias or the repository's name.

    A model with an adapter merged into it is another model, so the alias is not its name.
    """
    source = prepared.source
    return publish.split_name(job.name or (None if source.adapter else source.alias) or source.name)


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


def proof(
    job: Job, prepared: Prepared, modelfile: Modelfile, items: Sequence[tuple[str, Path, Blob]], log: Log
) -> tuple[Check, ...]:
    """Prove the files that are about to be published.

    Raises:
        ProofError: if one is not what was meant.
    """
    tokenizer = prepared.tokenizer
    source = prepared.source
    prompting = prove.Prompting(
        tokenizer.chat_template,
        tokenizer.bos or "",
        tokenizer.eos or "",
        has_go_template=modelfile.template is not None,
        tokenizer=source.folder if source.gguf is None else None,
    )
    checks = prove.files(job.proof, items, prompting, log.stage)
    prove.refuse_differences("/".join(model_name(job, prepared)), checks)
    return checks


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
        reports.describe_file(*digests[plan.recipe], plan, blob, meter.errors(plan) if meter else None)
        for plan, blob in zip(planned, blobs, strict=True)
    )
    return Report(
        model=job.model,
        source=reports.describe_source(prepared.source),
        sources=sources,
        files=files,
        checks=checks,
        notes=tuple(dict.fromkeys(note for plan in planned for note in plan.notes)),
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
