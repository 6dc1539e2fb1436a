"""Finds Ollama: its program, its daemon's address as OLLAMA_HOST says it, the version, and which prompts it makes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from pipeline.errors import InputError, ToolError

# The oldest and the newest Ollama that the tests have pulled with, created with and chatted with.
TRIED = (("0.32.15", "oldest"), ("0.34.4", "newest"))

_DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}


def find_ollama() -> Path | None:
    """Return the `ollama` program on PATH, or None."""
    found = shutil.which("ollama")
    return Path(found) if found else None


def daemon_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return the daemon's base address from OLLAMA_HOST, read as Ollama does (envconfig `Host`), no slash at the end.

    "host", "host:port", "scheme://host:port/path" and IPv6 are known; a bad port becomes the default one (11434, or the
    scheme's); an address that means "all interfaces" becomes the loopback address, as clients need it.
    """
    text = environment.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    default_port = _SCHEME_PORTS.get(scheme, _DEFAULT_PORT) if separator else _DEFAULT_PORT
    hostport, slash, path = rest.partition("/")
    host, port = _split(hostport, default_port)
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # read, never bound
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}{slash}{path}".rstrip("/")


def daemon_version(url: str | None = None, timeout: float = 2.0) -> str | None:
    """Ask the daemon at *url* (default: OLLAMA_HOST) for its version; None if nobody answers as Ollama would."""
    try:
        with requests.Session() as http:
            http.trust_env = False  # Ollama's own client asks no proxy about this machine either
            answer = http.get(f"{url or daemon_url()}/api/version", timeout=timeout)
        version = answer.json()["version"] if answer.ok else None
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def rendered_prompt(url: str, model: str, request: Mapping[str, Any], timeout: float = 120.0) -> str:
    """Ask the daemon at *url* which prompt it would send for a /api/chat *request* to *model*; no token is made.

    Raises:
        InputError: if it refuses the request, or the model's template does.
        ToolError: if nobody answers as Ollama does.
    """
    body = {**request, "model": model, "stream": False, "truncate": False, "_debug_render_only": True}
    try:
        with requests.Session() as http:
            http.trust_env = False
            answer = http.post(f"{url}/api/chat", json=body, timeout=(2, timeout))
        said = answer.json()
        if not answer.ok:
            raise InputError("Ollama refuses to render a prompt", where=model, found=said.get("error"))
        return str(said["_debug_info"]["rendered_template"])
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ToolError("Ollama does not say which prompt it would send", where=url, found=exc) from exc


def unload(url: str, model: str, timeout: float = 10.0) -> None:
    """Let the daemon at *url* forget *model*; nothing happens if it cannot."""
    with contextlib.suppress(requests.RequestException), requests.Session() as http:
        http.trust_env = False
        http.post(f"{url}/api/generate", json={"model": model, "keep_alive": 0}, timeout=timeout)


def _split(hostport: str, default_port: int) -> tuple[str, int]:
    """Split "host", "host:port", "[v6]", "[v6]:port" or a bare IPv6 address."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", hostport)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif hostport.count(":") > 1:
        host, port = hostport, None
    else:
        host, _, port = hostport.partition(":")
    if not port:
        return host, default_port
    is_port = port.isascii() and port.isdigit() and int(port) <= 65535
    return host, int(port) if is_port else default_port
