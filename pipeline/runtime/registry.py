"""Asks a registry what `ollama pull` would: is anybody there, does it speak the protocol, does it serve a blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import requests

from pipeline.runtime.web import session

# What asking raises where the answer is missing, or of another form than a registry's.
NOT_A_REGISTRY = (requests.RequestException, ValueError, KeyError, TypeError, IndexError, AttributeError)

_SECONDS = 3.0
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_MAX_REDIRECTS = 5
_MAX_REPOSITORIES = 20
_LARGEST_PART = 100_000_000  # bytes: Ollama cuts what is larger into parts
_CLOSED = "the registry wants a login for reading, and `ollama pull` has none: open it for readers"
_LOCATION_ADVICE = """give docker-registry  http: {headers: {Location: ["#"]}}  in its config.yml"""


@dataclass(frozen=True)
class Probe:
    """What a registry answered.

    *state* is "absent" (nobody listens), "other" (somebody else does), "empty" (no model is published), "broken" (a
    model cannot be fetched) or "ready"; *detail* says more.
    """

    state: Literal["absent", "other", "empty", "broken", "ready"]
    detail: str


def probe_registry(address: str, timeout: float = _SECONDS) -> Probe:
    """Ask a registry as `ollama pull` would: its version, a manifest, a blob's first byte.

    *address* is "host:port", for http, or a URL.  A model's bytes are not read.
    """
    url = address.rstrip("/") if "://" in address else f"http://{address}"
    try:
        with session(urlsplit(url).hostname or "") as http:
            return _probe(http, url, timeout)
    except requests.exceptions.SSLError as error:
        return Probe("broken", f"its certificate is not trusted (SSL_CERT_FILE): {str(error)[-120:]}")
    except requests.Timeout:
        return Probe("other", f"somebody listens, but gives no answer in {timeout:g} seconds")
    except requests.ConnectionError:
        return Probe("absent", "nobody listens there")
    except NOT_A_REGISTRY as error:
        return Probe("broken", f"its answer is not that of a registry: {type(error).__name__}")


def _probe(http: requests.Session, url: str, timeout: float) -> Probe:
    answer = http.get(f"{url}/v2/", timeout=timeout)
    if answer.status_code == 401 and "WWW-Authenticate" in answer.headers:
        return Probe("broken", _CLOSED)
    if answer.status_code != 200 or "Docker-Distribution-Api-Version" not in answer.headers:
        return Probe("other", f"the answer to /v2/ is {answer.status_code}, and not that of a registry")
    names = [str(name) for name in _json(http, f"{url}/v2/_catalog", timeout)["repositories"]]
    for repository in names[:_MAX_REPOSITORIES]:
        tags = _json(http, f"{url}/v2/{repository}/tags/list", timeout)["tags"]
        if not tags:
            continue  # its models were removed
        problem = try_pull(http, url, repository, str(tags[0]), timeout)
        if problem:
            return Probe("broken", problem)
        return Probe("ready", f"{len(names)} models; {repository}:{tags[0]} can be pulled")
    return Probe("empty", "it serves no model yet")


def try_pull(http: requests.Session, base: str, repository: str, tag: str, timeout: float = 30.0) -> str | None:
    """Ask for a model as `ollama pull` does, for the first byte of its largest blob; return what it would fail on.

    Follows Ollama's server/images.go and download.go: no login, and a blob's parts are fetched from where the Location
    header of the whole one points.

    Raises:
        NOT_A_REGISTRY: if an answer is missing, or not a registry's.
    """
    answer = http.get(f"{base}/v2/{repository}/manifests/{tag}", timeout=timeout, headers={"Accept": _MANIFEST})
    if answer.status_code in (401, 403):
        return _CLOSED
    answer.raise_for_status()
    largest = max(answer.json()["layers"], key=lambda layer: int(layer["size"]))
    size, url = int(largest["size"]), f"{base}/v2/{repository}/blobs/{largest['digest']}"
    head = http.head(url, timeout=timeout, allow_redirects=True)
    if head.status_code != 200 or head.headers.get("Content-Length") != str(size):
        return f"the blob {largest['digest']} is answered with {head.status_code}, or as of another size"
    return _try_part(http, url, size, timeout)


def _try_part(http: requests.Session, url: str, size: int, timeout: float) -> str | None:
    for _ in range(_MAX_REDIRECTS):
        with http.get(url, timeout=timeout, stream=True, allow_redirects=False) as blob:
            location = blob.headers.get("Location")
            target = urljoin(url, location) if location else ""
            stays = urlsplit(target).hostname == urlsplit(url).hostname
            if blob.is_redirect and stays:
                url = target
                continue
            if blob.status_code != 200 and not (blob.status_code == 307 and target):
                return f"a blob is answered with {blob.status_code}"
        if not target:
            return f"a blob comes without a Location header, and `ollama pull` fails without one: {_LOCATION_ADVICE}"
        with http.get(target, timeout=timeout, stream=True, headers={"Range": "bytes=0-0"}) as part:
            if part.status_code != 206 and size > _LARGEST_PART:
                return "the registry gives no part of a blob, and `ollama pull` asks for parts of large ones"
            return None if part.ok else f"a part of a blob is answered with {part.status_code}"
    return "a blob is redirected in a circle"


def _json(http: requests.Session, url: str, timeout: float) -> Mapping[str, Any]:
    answer = http.get(url, timeout=timeout)
    answer.raise_for_status()
    found: Mapping[str, Any] = answer.json()
    return found
