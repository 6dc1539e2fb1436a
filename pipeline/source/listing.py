"""The repositories of one organisation on the Hub."""

from __future__ import annotations

from pipeline.errors import AccessError
from pipeline.source import hub
from pipeline.source._hub_errors import translate

_MOST = 5000


def repositories(organisation: str) -> tuple[str, ...]:
    """List the models of *organisation* as "org/name", `_MOST` at most.

    Raises:
        AccessError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    endpoint, _ = hub.settings()
    try:
        found = HfApi(endpoint=endpoint).list_models(author=organisation, limit=_MOST)
        return tuple(sorted(model.id for model in found))
    except Exception as error:
        told = translate(error, f"{organisation}/*", "main")
        if told is None:
            raise
        raise AccessError(told.what, where=organisation, found=told.found, hint=told.hint) from error
