"""The Ollama that runs on this machine, asked for one thing: which models it lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import requests

from pipeline.runtime.ollama import daemon_url
from pipeline.types import Check

_NAME = "listed by Ollama"
_COMMAND = "ollama list"
_TIMEOUT_S = (2.0, 30.0)  # to connect, to answer


def check_listed(wanted: Mapping[str, str], root: Path) -> Check:
    """Ask a running Ollama whether it lists *wanted*: names, and digests of their manifests in the store at *root*."""
    url = daemon_url()
    try:
        listed = _listed(url)
    except requests.ConnectionError:
        return Check(_NAME, "not checked", f"no Ollama answers at {url}", _COMMAND)
    except (requests.RequestException, ValueError, KeyError, TypeError) as exc:
        return Check(_NAME, "not checked", f"{url} does not answer as Ollama does: {exc!r}", _COMMAND)
    for name, digest in wanted.items():
        if listed.get(name) != digest.removeprefix("sha256:"):
            found = "another model" if name in listed else "nothing"
            detail = f"{url} lists {found} as {name}: its store is not {root} (OLLAMA_MODELS, OLLAMA_HOST)"
            return Check(_NAME, "different", detail, _COMMAND)
    return Check(_NAME, "proven", f"{url} lists {len(wanted)} of {len(wanted)} names")


def _listed(url: str) -> dict[str, str]:
    with requests.Session() as session:
        session.trust_env = False  # a proxy has no business between us and this machine
        answer = session.get(f"{url}/api/tags", timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return {str(model["name"]): str(model["digest"]) for model in answer.json()["models"]}
