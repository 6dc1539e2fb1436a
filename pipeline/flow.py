"""Read this first: the whole job, one line per stage.

`package` turns one model reference into one published artifact; `convert` and `quantize` are the same stages called
alone.  Each stage lives in its own package; this file only joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline import arch as archs
from pipeline import blueprint as blueprints
from pipeline import crash, decide, prove, publish, quant, record, republish
from pipeline import delivery as deliveries
from pipeline import modelfile as modelfiles
from pipeline import plan as plans
from pipeline import release as releases
from pipeline import report as reports
from pipeline.checkpoint import merge_adapter, open_checkpoint
from pipeline.delivery import Delivery
from pipeline.errors import UsageError
from pipeline.gguf import read_parts
from pipeline.job import DEFAULT_QUANT, Job, Prepared, adapted, usual_quant
from pipeline.measure import LEVELS, ErrorMeter
from pipeline.parts import SplitModel, Written
from pipeline.provenance import SourceHashes, files_of, weights_of
from pipeline.report import Report
from pipeline.runtime import runtime_at_hand
from pipeline.source import OpenSource, Weights, open_source
from pipeline.store import Name
from pipeline.tokenizer import read_tokenizer
from pipeline.tuning import Tuning
from pipeline.types import Blob, Check, Log, Modelfile, Plan
from pipeline.writing import check_encoders, write


def package(job: Job, log: Log) -> Report:
    """Turn one model reference into one published artifact, at each target; or find that it is there already.

    Raises:
        PipelineError: from any stage; nothing is published then.  If only some of several targets fail, the others have
            the model, the report says so, and the first failure is raised.
    """
    clock = reports.Stopwatch()
    check_job(job)
    reports.require_room()
    with deliveries.opened(job.targets) as targets:
        look = record.look_of(job)
        if not job.again and (known := record.at_a_glance(job, targets, look)):
            return replace(known, seconds=clock.so_far())
        with prepare(job.model, log, "stream", requantize=job.requantize, adapter=job.adapter) as prepared:
            job = replace(job, quants=choose_quants(job.quants, prepared))
            planned = [plans.make_plan(prepared.blueprint, name, job.tuning) for name in job.quants]
            plans.say_notes(planned, prepared.blueprint.notes, log)
            modelfile = decide.modelfile_of(prepared, job, log)
            for target in targets.values():
                target.check(*model_name(job, prepared), job.tags_of_all())
            clock.lap("read")
            crash.point("headers read")
            files = source_files(prepared, planned)
            slot = record.Slot(record.place_of(job, prepared.source, targets), look)
            again = partial(releases.make_release, job, prepared, planned, modelfile, [Path()] * len(planned))
            last = None if job.again else record.held(job, prepared, planned, files, slot, targets, again)
            if last is not None and len(last.targets) == len(targets):
                return replace(last, seconds=clock.so_far())
            had = last.targets if last else ()
            done = {one.target for one in had}
            missing = {text: one for text, one in targets.items() if publish.redacted(text) not in done}
            return make(job, prepared, planned, modelfile, missing, had, slot, clock, log)


def make(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    modelfile: Modelfile,
    targets: deliveries.Targets,
    had: tuple[Delivery, ...],
    slot: record.Slot,
    clock: reports.Stopwatch,
    log: Log,
) -> Report:
    """Write all files, prove them, publish them to each of *targets*, and save the report.

    The targets of *had* have them already.

    Raises:
        PipelineError: as `package`.
    """
    check_encoders(planned)
    meter = ErrorMeter(every) if (every := LEVELS[job.errors]) else None
    first = next(iter(targets.values()))
    with first.staging([plan.file_bytes for plan in planned]) as paths, hashed(prepared, planned) as hashes:
        crash.point("staging made")
        blobs = write(planned, paths, log, job.threads, prepared.opened, meter, job.engine)
        clock.lap("write")
        sources = hashes.result()
        clock.lap("hash sources")
        checks = proof(job, prepared, modelfile, list(zip(job.quants, paths, blobs, strict=True)), log)
        clock.lap("prove")
        crash.point("files proven")
        release = releases.make_release(job, prepared, planned, modelfile, paths, blobs)
        release = replace(release, about=releases.describe(prepared, planned, modelfile, checks, meter))
        delivered, error = deliveries.deliver(targets, release, log)
        crash.point("all named")
        clock.lap("publish")
    delivered = (*had, *delivered)
    checks += deliveries.all_checks(delivered)
    if all(one.state == "failed" for one in delivered) and error:
        raise error
    report = record.make_report(
        job, prepared, planned, blobs, modelfile, delivered, checks, sources, meter, clock, slot,
        deliveries.visible(release),
    )  # fmt: skip
    reports.save(report)
    if error:
        log.note(f"the other targets have the model, see {slot.path}")
        raise error
    return report


def check_job(job: Job) -> None:
    """Refuse what cannot work before anything is fetched.

    Raises:
        UsageError: if the name, a tag, the proof, the way to measure errors or a setting of the runtime is wrong.
    """
    if job.name is not None:
        publish.require_name(job.name)
    for tag in job.tags:
        Name.parse(f"model:{tag.replace('{quant}', DEFAULT_QUANT)}")
    if job.proof not in prove.LEVELS:
        raise UsageError("no such proof", expected=" or ".join(prove.LEVELS), found=job.proof)
    if job.errors not in LEVELS:
        raise UsageError("no such way to measure errors", expected=" or ".join(LEVELS), found=job.errors)
    quant.check_engine(job.engine)
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
    source = adapted(opened.source, adapter)
    checkpoint = open_checkpoint(source.folder, opened.remote_headers)
    if source.adapter:
        checkpoint = merge_adapter(checkpoint, source.adapter, source.repository or opened.source.name)
    arch = archs.match(checkpoint.config)
    config = archs.with_padding(arch, arch.config(checkpoint.config), checkpoint.tensors)
    tokenizer = read_tokenizer(source.folder, config.raw)
    blueprint = blueprints.from_checkpoint(checkpoint, tokenizer, source)
    opened = replace(opened, source=source)
    return Prepared(
        opened,
        tokenizer,
        blueprint,
        checkpoint.generation_config,
        checkpoint.licenses(),
        checkpoint.tensors,
        checkpoint.sentence_facts().max_tokens,
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
    return (usual_quant(prepared.source),)


def convert(
    model: str,
    path: Path,
    dtype: str,
    log: Log,
    threads: int = 0,
    *,
    adapter: Path | None = None,
    part_bytes: int | None = None,
    engine: str = quant.AUTO,
) -> Written:
    """Write a checkpoint as an unquantized GGUF at *path*; *dtype* is a precision, or "auto" for the source's own.

    With *part_bytes*, it is split into files with so many bytes of tensors at most.
    """
    quant.check_engine(engine)
    with prepare(model, log, "stream", adapter=adapter) as prepared:
        if prepared.source.gguf:
            raise UsageError("is a GGUF already", where=model, hint="quantize writes it in another type")
        plan = plans.make_plan(prepared.blueprint, dtype)
        cut = SplitModel.of(plan, path, part_bytes)
        return cut.write(lambda planned, paths: write(planned, paths, log, threads, prepared.opened, engine=engine))


def quantize(
    gguf: Path,
    path: Path,
    recipe: str,
    log: Log,
    threads: int = 0,
    *,
    requantize: bool = False,
    part_bytes: int | None = None,
    engine: str = quant.AUTO,
    tuning: Tuning | None = None,
) -> Written:
    """Write *gguf*, which is unquantized or may be quantized again, once more at *path* as *recipe* says.

    One part of a split model stands for all of them.  *part_bytes* is as for `convert`; *tuning* changes
    the recipe.
    """
    quant.check_engine(engine)
    parts = read_parts(gguf)
    plan = plans.make_plan(blueprints.from_gguf(parts, requantize=requantize), recipe, tuning)
    plans.say_notes([plan], (), log)
    cut = SplitModel.of(plan, path, part_bytes)
    cut.refuse_to_replace([part.path for part in parts])
    check_encoders([plan])
    return cut.write(lambda planned, paths: write(planned, paths, log, threads, engine=engine))


def source_files(prepared: Prepared, planned: Sequence[Plan]) -> tuple[Path, ...]:
    """List the files that *planned* are made of; weights may still be on their way."""
    source = prepared.source
    folders = () if source.gguf else (source.folder, source.adapter) if source.adapter else (source.folder,)
    return files_of(folders, weights_of(planned[0].tensors))


def hashed(prepared: Prepared, planned: Sequence[Plan]) -> SourceHashes:
    """Make what hashes the files that *planned* are made of, while they are written."""
    prepared.opened.prefer(weights_of(planned[0].tensors))
    return SourceHashes(prepared.source.folder, source_files(prepared, planned), prepared.opened.wait)


def modelfile_text(job: Job, log: Log) -> str:
    """Give the text of the Modelfile for a model; its FROM names the GGUF that `convert` or `publish` would write."""
    with prepare(job.model, log, adapter=job.adapter) as prepared:
        modelfile = decide.modelfile_of(prepared, job, log)
        finished, quant = prepared.blueprint.finished, choose_quants(job.quants, prepared)[0]
        is_there = finished is not None and finished.recipe == quant
        from_ = str(finished.path) if finished and is_there else f"./{model_name(job, prepared)[1]}-{quant}.gguf"
        return modelfiles.render_text(modelfile, from_, job.templates)


def model_name(job: Job, prepared: Prepared) -> tuple[str, str]:
    """Give the namespace and the name to publish under."""
    return job.name_of(prepared.source)


def proof(
    job: Job, prepared: Prepared, modelfile: Modelfile, items: Sequence[tuple[str, Path, Blob]], log: Log
) -> tuple[Check, ...]:
    """Prove the files that are about to be published.

    Raises:
        ProofError: if one is not what was meant, unless the job says to go on.
    """
    checks = prove.files(job.proof, items, releases.prompting_of(job, prepared, modelfile), log.stage)
    if job.force:
        for check in (check for check in checks if check.state == "different"):
            log.note(f"published although {check.name} is different: {check.detail}")
    else:
        prove.refuse_differences("/".join(model_name(job, prepared)), checks)
    return checks
