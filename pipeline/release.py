"""Gather what a target needs to publish: each GGUF with what surrounds it, prompts to compare, and words for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline import modelfile as modelfiles
from pipeline import prove, publish
from pipeline.job import Job, Prepared
from pipeline.measure import ErrorMeter
from pipeline.types import Blob, Check, Modelfile, Plan

_MAX_CARD_HEAD = 100_000  # characters
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_LICENSE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9][A-Za-z0-9._-]{0,60})[\"']?\s*$", re.MULTILINE)


def make_release(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    modelfile: Modelfile,
    paths: Sequence[Path],
    blobs: Sequence[Blob],
) -> publish.Release:
    """Put each GGUF together with what the Modelfile says, and with the prompts that its own template makes."""
    family = modelfiles.families(job.templates).get(modelfile.family or "")
    entries = tuple(
        publish.ReleaseEntry(
            tags=job.tags_of(number),
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
            renderer=modelfile.renderer,
            parser=modelfile.parser,
            requires=modelfile.requires,
            fallback_template=family.template if family else None,
        )
        for number, (plan, path, blob) in enumerate(zip(planned, paths, blobs, strict=True))
    )
    return publish.Release(*job.name_of(prepared.source), entries, partial(_prompts, job, prepared, modelfile))


def _prompts(job: Job, prepared: Prepared, modelfile: Modelfile) -> tuple[publish.Prompt, ...]:
    """Render conversations by the checkpoint's own template; none where nothing is to be proven."""
    prompting = prompting_of(job, prepared, modelfile)
    if job.proof == "none" or prompting.template is None:
        return ()
    bos = prompting.template.bos
    return tuple(
        publish.Prompt(messages, text.removeprefix(bos), bos) for messages, text in prove.expected_prompts(prompting)
    )


def prompting_of(job: Job, prepared: Prepared, modelfile: Modelfile) -> prove.Prompting:
    """Say how the checkpoint prompts, and whether Ollama is told another way."""
    tokenizer, source = prepared.tokenizer, prepared.source
    own, texts = tokenizer.chat_template, (tokenizer.bos or "", tokenizer.eos or "")
    return prove.Prompting(
        None if own is None else prove.Template(own, tokenizer.tool_template, *texts),
        go_template=modelfile.template,
        renderer=modelfile.renderer,
        tokenizer=source.folder if source.gguf is None else None,
        for_ollama="ollama" in job.targets,
        setting=prove.Setting(modelfile.system, modelfile.messages),
    )


def describe(
    prepared: Prepared,
    planned: Sequence[Plan],
    modelfile: Modelfile,
    checks: Sequence[Check],
    meter: ErrorMeter | None,
) -> publish.About:
    """Say for people where a release is from, what was lost and what was checked."""
    source = prepared.source
    worst = {plan.recipe: _worst(plan, meter) for plan in planned} if meter else {}
    return publish.About(
        repository=source.repository,
        commit=source.commit,
        license=_card_license(source.folder / "README.md") if source.gguf is None else None,
        is_embedding=prepared.blueprint.pooling_type is not None,
        errors={recipe: found for recipe, found in worst.items() if found},
        is_sample=meter is not None and meter.every > 1,
        checks=tuple(checks),
        notes=(*prepared.blueprint.notes, *modelfile.notes),
    )


def _worst(plan: Plan, meter: ErrorMeter) -> tuple[float, str] | None:
    """Find the largest relative error of a tensor, and its name."""
    found = zip(plan.tensors, meter.errors(plan), strict=True)
    measured = [(error.relative, tensor.name) for tensor, error in found if error.relative is not None]
    return max(measured) if measured else None


def _card_license(path: Path) -> str | None:
    """Read the licence's id from the metadata at the top of the checkpoint's model card."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(_MAX_CARD_HEAD)
    metadata = _FRONT_MATTER.match(head)
    found = _LICENSE.search(metadata[1]) if metadata else None
    return found[1] if found else None
