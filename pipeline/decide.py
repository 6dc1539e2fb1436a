"""Decide what is published with the weights: the Modelfile, or that Ollama has no use for the model.

Nothing is read but headers, so a refusal comes before the heavy work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import modelfile as modelfiles
from pipeline import prove, publish
from pipeline.blueprint import Blueprint
from pipeline.errors import UnsupportedError
from pipeline.job import Job, Prepared
from pipeline.types import Blob, Log, Modelfile, Plan

_RANK = 4  # LLAMA_POOLING_TYPE_RANK: a score instead of a vector


def modelfile_of(prepared: Prepared, job: Job, log: Log) -> Modelfile:
    """Decide what is published with the weights, before any are read; say what the user must know of it.

    Raises:
        UsageError, UnsupportedError: if Ollama has no use for the model, or would not take what the user wants.
    """
    require_use(prepared.blueprint, job.model)
    modelfile = _wanted(prepared, job)
    for note in modelfile.notes:
        log.note(note)
    return modelfile


def _wanted(prepared: Prepared, job: Job) -> Modelfile:
    """Decide what the Modelfile says: the user's wishes over the alias's, over what the model brings.

    Raises:
        UsageError, UnsupportedError: if Ollama would not take a wish, or nothing here can grant it.
    """
    tokenizer = prepared.tokenizer
    overrides = job.wishes(prepared.source)
    if prepared.blueprint.pooling_type is not None:
        shorter = prepared.max_tokens is not None and prepared.max_tokens < (prepared.blueprint.context_length or 0)
        return modelfiles.make_embedding_modelfile(
            max_tokens=prepared.max_tokens if shorter else None, licenses=prepared.licenses, overrides=overrides
        )
    return modelfiles.make_modelfile(
        chat_template=tokenizer.chat_template,
        generation_config=prepared.generation_config,
        eos_texts=tokenizer.eos_texts,
        licenses=prepared.licenses,
        overrides=overrides,
        with_template=job.with_template,
        families=modelfiles.families(job.templates),
        family_name=prepared.source.family,
        architecture=prepared.blueprint.model.arch,
        tokens=frozenset(tokenizer.tokens),
    )


def require_use(blueprint: Blueprint, name: str) -> None:
    """Refuse to publish a model that Ollama has no use for; *name* is the model, for the message.

    Raises:
        UnsupportedError: if it gives scores, or vectors that the header does not say how to pool.
    """
    if blueprint.pooling_type == _RANK:
        raise UnsupportedError(
            "a reranker gives scores, and Ollama has no request for them",
            where=name,
            expected="a model that writes text, or makes vectors",
            hint="serve the GGUF with llama.cpp: llama-server --reranking; or publish an embedding model",
        )
    if blueprint.is_encoder and blueprint.pooling_type is None:
        raise UnsupportedError(
            "the model makes one vector of each token, and nothing says how to pool them",
            where=name,
            expected="modules.json and 1_Pooling/config.json, as sentence-transformers writes them",
            hint="Ollama would take it for a chat model and crash; add the two files (mean is usual, cls for BGE), "
            'such as {"pooling_mode_mean_tokens": true}; `convert` writes the GGUF as it is',
        )


def make_release(
    job: Job,
    prepared: Prepared,
    planned: Sequence[Plan],
    modelfile: Modelfile,
    paths: Sequence[Path],
    blobs: Sequence[Blob],
) -> publish.Release:
    """Gather what a target needs to publish."""
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
    prompting = prompting_of(job, prepared, modelfile)
    expected = prove.expected_prompts(prompting) if prompting.for_ollama and job.proof != "none" else ()
    bos = prompting.template.bos if prompting.template else ""
    prompts = tuple(publish.Prompt(messages, text.removeprefix(bos), bos) for messages, text in expected)
    return publish.Release(*job.name_of(prepared.source), entries, prompts)


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
