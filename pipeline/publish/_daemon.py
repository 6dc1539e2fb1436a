"""The Ollama that runs on this machine, asked for one thing: which models it lists."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import requests

from pipeline.types import Check

_NAME = "listed by Ollama"
_COMMAND = "ollama list"
_TIMEOUT_S = (2.0, 30.0)  # to connect, to answer
_DEFAULT_PORTS = {"http": 80, "https": 443}


def daemon_url() -> str:
    """Return where Ollama's clients look for it, as envconfig.ConnectableHost: OLLAMA_HOST, else 127.0.0.1:11434."""
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    port = _DEFAULT_PORTS.get(scheme, 11434) if found else 11434
    place = rest.partition("/")[0]
    if place.count(":") > 1 and not place.startswith("["):
        place = f"[{place}]"  # an IPv6 address alone
    parts = urlsplit(f"//{place}")
    host = _connectable(parts.hostname or "127.0.0.1")
    with suppress(ValueError):  # Ollama, too, takes the default for a port that is none
        port = port if parts.port is None else parts.port
    return f"{scheme}://{host}:{port}"


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


def _connectable(host: str) -> str:
    """Replace an address that only a server can use, and put brackets around IPv6."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host
