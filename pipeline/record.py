"""What is written down of a publication, and whether a job would give it again, told without reading a weight.

The report of the last publication under a name keeps what a later one compares, in two ways:

- at a glance: the job, the version of the tool, and how all files that may matter look (size, times, inode), as one
  hash.  If that is the same, and the targets hold what they held, nothing need be read, not even a tokenizer.
- else file by file: the plan (recipe, types, header, byte version) by a key; the source by its commit, or by its files,
  which are hashed where they look otherwise than before (provenance.recognise); the manifests, which name the
  Modelfile's layers and the tags, with what the targets hold.

Threads and engine do not count: they change no byte.  What was proven less well than is wanted now, or with an error,
is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline import __version__, data, prove
from pipeline import report as reports
from pipeline.blueprint import BYTE_VERSION
from pipeline.delivery import Delivery, Targets, Visible, there_already, visible
from pipeline.errors import PipelineError
from pipeline.gguf import encode_plan_header
from pipeline.job import Job, Prepared, adapted, usual_quant
from pipeline.measure import LEVELS, ErrorMeter
from pipeline.provenance import SourceFile, looks, recognise
from pipeline.publish import PULL_CHECK, Release
from pipeline.report import Report
from pipeline.runtime import runtime_at_hand
from pipeline.source import open_source
from pipeline.store import registry_address
from pipeline.tuning import Tuning
from pipeline.types import Blob, Check, Modelfile, Plan, Source

# Settings of a job that change neither a byte nor a name; proof and errors are compared by their level.
_NO_MATTER = ("threads", "engine", "targets", "again", "force", "proof", "errors")


@dataclass(frozen=True)
class Slot:
    """Where the report of a publication goes, and what the job and its files looked like before it began."""

    path: Path
    look: str | None


def place_of(job: Job, source: Source, targets: Targets) -> Path:
    """Return where the report of *job* goes: by the name of its first file at its first target."""
    first = next(iter(targets.values()))
    return reports.report_path(first.names(*job.name_of(source), job.quants[:1])[0])


def look_of(job: Job) -> str | None:
    """Return one hash of the job, the version of this tool, and how all files that may matter look.

    It is None where nothing can be told at a glance: a file that changed a moment ago, a model that cannot be opened.
    """
    try:
        with open_source(job.model, weights="none") as opened:
            source = opened.source
        wanted = asdict(replace(job, overrides=job.wishes(source), tuning=Tuning()))
    except PipelineError:
        return None  # the work itself will say what is wrong
    own = source.gguf or source.folder
    if source.gguf and "-of-" in source.gguf.name:
        return None  # one part of several, and only its header tells which
    roots = [data.path("templates"), *(value for value in vars(job).values() if isinstance(value, Path))]
    seen = looks([*roots, *([] if source.commit else [own])])
    if seen is None:
        return None
    wanted = {name: value for name, value in wanted.items() if name not in _NO_MATTER}
    wanted["tuning"] = job.tuning.describe()
    values = [__version__, BYTE_VERSION, wanted, asdict(source), registry_address(), seen]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def at_a_glance(job: Job, targets: Targets, look: str | None) -> Report | None:
    """Find the last report if nothing looks otherwise than then, and all targets hold what they held."""
    if look is None:
        return None
    with open_source(job.model, weights="none") as opened:
        source = adapted(opened.source, job.adapter)
    if not job.quants and source.gguf:
        return None  # its header tells what it is called
    last = reports.recall(place_of(replace(job, quants=job.quants or (usual_quant(source),)), source, targets))
    if last is None or last.look != look or not _is_proven(job, last):
        return None
    held = there_already(targets, last.visible, last.targets)
    return replace(last, targets=held) if len(held) == len(targets) else None


def key_of(plan: Plan) -> str:
    """Return what stands for all that decides the bytes of a planned file, but the weights of its source."""
    state = hashlib.sha256(f"{BYTE_VERSION} {plan.recipe} {plan.file_bytes} {' '.join(plan.tuning)} ".encode())
    if plan.verbatim is None:  # a copy is its source, header and all
        state.update(encode_plan_header(plan.metadata, plan.tensors))
    return state.hexdigest()


def held(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    files: Sequence[Path],
    slot: Slot,
    targets: Targets,
    release_of: Callable[[Sequence[Blob]], Release],
) -> Report | None:
    """Find the last report if it tells of all *planned* files, made of the source, whose *files* are as they were.

    Its targets are those that hold all of the release that *release_of* makes of the content of the planned files.
    """
    found = _last_made(job, prepared, planned, files, slot)
    if found is None:
        return None
    last, blobs = found
    return replace(last, targets=there_already(targets, visible(release_of(blobs)), last.targets))


def _last_made(
    job: Job, prepared: Prepared, planned: Sequence[Plan], files: Sequence[Path], slot: Slot
) -> tuple[Report, list[Blob]] | None:
    """Find the last report and the content of each planned file, whatever the targets hold."""
    last = reports.recall(slot.path)
    if last is None or not _is_proven(job, last):
        return None
    made = {file.key: Blob(file.digest, file.size) for file in last.files}
    keys = [key_of(plan) for plan in planned]
    if not made.keys() >= set(keys):
        return None
    source, before = prepared.source, last.source
    is_same_commit = source.commit is not None and before.get("commit") == source.commit
    is_same_commit = is_same_commit and before.get("repository") == source.repository
    found = recognise(source.folder, files, last.sources, is_same_commit=is_same_commit)
    if found is None:
        return None
    looks_otherwise = slot.look != last.look or [one.seen for one in found] != [one.seen for one in last.sources]
    if looks_otherwise and len(last.files) == len(keys) and set(last.visible.blobs) == set(job.tags_of_all()):
        last = replace(last, sources=found, look=slot.look)
        reports.save(last)
    return replace(last, files=tuple(file for file in last.files if file.key in keys)), [made[key] for key in keys]


def _is_proven(job: Job, last: Report) -> bool:
    """Whether the last time proved and measured at least what is wanted now."""
    levels, measured = list(prove.LEVELS), list(LEVELS)
    if last.proof not in levels or last.errors not in measured:
        return False
    if not job.force and any(map(_is_wrong, last.checks)):
        return False
    if job.proof != "none" and last.llama_cpp is None and runtime_at_hand() is not None:
        return False  # what could not be run then can be run now
    return levels.index(last.proof) >= levels.index(job.proof) and measured.index(last.errors) >= measured.index(
        job.errors
    )


def _is_wrong(check: Check) -> bool:
    """Whether what was made was not what was meant; a registry that Ollama cannot pull from is not made again."""
    return check.state == "different" and not check.name.startswith(PULL_CHECK)


def make_report(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    blobs: Sequence[Blob],
    modelfile: Modelfile,
    delivered: tuple[Delivery, ...],
    checks: tuple[Check, ...],
    sources: tuple[SourceFile, ...],
    meter: ErrorMeter | None,
    clock: reports.Stopwatch,
    slot: Slot,
    shown: Visible,
) -> Report:
    """Say what was made of what, and what was proven."""
    named = {name.rpartition(":")[2]: (name, digest) for one in reversed(delivered) for name, digest in one.named}
    files = tuple(
        reports.describe_file(*named[plan.recipe], plan, blob, meter.errors(plan) if meter else None, key_of(plan))
        for plan, blob in zip(planned, blobs, strict=True)
    )
    return Report(
        model=job.model,
        source=reports.describe_source(prepared.source),
        sources=sources,
        files=files,
        checks=checks,
        notes=(*dict.fromkeys(note for plan in planned for note in plan.notes), *modelfile.notes),
        targets=delivered,
        visible=shown,
        look=slot.look,
        family=modelfile.family,
        pre_tokenizer=prepared.tokenizer.pre,
        tokenizer=reports.describe_tokenizer(prepared.blueprint.metadata),
        proof="none" if job.proof == "none" else "quick",
        errors=job.errors,
        sample_every=meter.every if meter else None,
        llama_cpp=None if job.proof == "none" else runtime_at_hand(),
        timings=clock.stages(),
        seconds=clock.seconds,
        path=slot.path,
    )
