"""Asks a registry what `ollama pull` would: is anybody there, does it speak the protocol, does it serve a blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import requests

_SECONDS = 3.0
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Probe:
    """What a registry answered.

    *state* is "absent" (nobody listens), "other" (somebody else does), "empty" (no model is published), "broken" (a
    model cannot be fetched) or "ready"; *detail* says more.
    """

    state: Literal["absent", "other", "empty", "broken", "ready"]
    detail: str


def probe_registry(address: str, timeout: float = _SECONDS) -> Probe:
    """Ask the registry at *address* ("host:port") as `ollama pull` would: its version, a manifest, a blob's first byte.

    No proxy is asked; a model's bytes are not read.
    """
    url = f"http://{address}"
    with requests.Session() as http:
        http.trust_env = False
        try:
            answer = http.get(f"{url}/v2/", timeout=timeout)
            if answer.status_code != 200 or "Docker-Distribution-Api-Version" not in answer.headers:
                return Probe("other", f"the answer to /v2/ is {answer.status_code}, and not that of a registry")
            return _fetch(http, url, timeout)
        except requests.Timeout:
            return Probe("other", f"somebody listens, but gives no answer in {timeout:g} seconds")
        except requests.ConnectionError:
            return Probe("absent", "nobody listens there")
        except (requests.RequestException, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return Probe("broken", f"its answer is not that of a registry: {type(error).__name__}")


def _fetch(http: requests.Session, url: str, timeout: float) -> Probe:
    """Fetch the first model's manifest and the beginning of its largest blob."""
    names = _json(http, f"{url}/v2/_catalog", timeout)["repositories"]
    if not names:
        return Probe("empty", "it serves no model yet")
    repository = str(names[0])
    tag = str(_json(http, f"{url}/v2/{repository}/tags/list", timeout)["tags"][0])
    layers = _json(http, f"{url}/v2/{repository}/manifests/{tag}", timeout)["layers"]
    digest = str(max(layers, key=lambda layer: int(layer["size"]))["digest"])
    with http.get(f"{url}/v2/{repository}/blobs/{digest}", timeout=timeout, stream=True) as blob:
        if not blob.ok and not blob.is_redirect:
            return Probe("broken", f"the blob {digest} of {repository}:{tag} is answered with {blob.status_code}")
        if "Location" not in blob.headers and not blob.history:
            return Probe("broken", "a blob comes without a Location header, and `ollama pull` fails without one")
    return Probe("ready", f"{len(names)} models; {repository}:{tag} can be pulled")


def _json(http: requests.Session, url: str, timeout: float) -> Mapping[str, Any]:
    answer = http.get(url, timeout=timeout, headers={"Accept": _MANIFEST})
    answer.raise_for_status()
    found: Mapping[str, Any] = answer.json()
    return found
