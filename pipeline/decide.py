"""Decide what is published with the weights: the Modelfile, or that Ollama has no use for the model.

Nothing is read but headers, so a refusal comes before the heavy work.
"""

from __future__ import annotations

from pipeline import modelfile as modelfiles
from pipeline.blueprint import Blueprint
from pipeline.errors import UnsupportedError
from pipeline.job import Job, Prepared
from pipeline.types import Log, Modelfile

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
