"""The target http://host:port in front of a real docker-registry, for the contract of all targets."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _sibling(name: str) -> ModuleType:
    """Import another module of this folder, the one that other tests use if there is one already."""
    key = f"oracle_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


docker_registry, proxy = _sibling("docker_registry"), _sibling("proxy")


def when(method: str, part: str, fault: Any) -> Callable[[int, str, str], Any]:
    """Make a plan: every request of *method* whose path has *part* in it suffers *fault*."""
    return lambda _number, asked, path: fault if asked == method and part in path else None


def refusal(status: int, code: str, **headers: str) -> Any:
    """Make a fault: the registry's own words for no."""
    text = json.dumps({"errors": [{"code": code, "message": "a fault of the tests"}]})
    return proxy.Fault(answer=proxy.answer(status, text, **headers))


# Q8_0 is the last of three tags: two are visible when its manifest fails.
PLANS = {
    "the last manifest is refused": when("PUT", "manifests/Q8_0", refusal(400, "MANIFEST_INVALID")),
    "the last manifest is forbidden": when("PUT", "manifests/Q8_0", refusal(403, "DENIED")),
    "the connection is cut in the last manifest": when("PUT", "manifests/Q8_0", proxy.Fault(cut_request=300)),
    "the last manifest is never answered": when("GET", "manifests/Q8_0", proxy.Fault(cut_answer=0)),
    "the connection is cut in a blob": when("PUT", "blobs", proxy.Fault(cut_request=400)),
    "nobody may write": when("POST", "blobs/uploads", refusal(401, "UNAUTHORIZED")),
    "it is read-only": when("POST", "blobs/uploads", refusal(405, "UNSUPPORTED")),
    "too many requests": when("POST", "blobs/uploads", refusal(429, "TOOMANYREQUESTS", Retry_After="0")),
    "too many requests for an hour": when("POST", "blobs/uploads", refusal(429, "TOOMANYREQUESTS", Retry_After="3600")),
    "it is in trouble": when("PUT", "blobs", refusal(503, "UNAVAILABLE")),
    "its disk is full, it says": when("PUT", "blobs", refusal(507, "UNKNOWN")),
    "a body is too large": when("PUT", "blobs", refusal(413, "UNKNOWN")),
    "a byte changes on its way": when("PUT", "blobs", proxy.Fault(flip=0)),
    "every session is expired": when("PUT", "blobs", refusal(404, "BLOB_UPLOAD_UNKNOWN")),
    "an answer is no HTTP": when("POST", "blobs/uploads", proxy.Fault(answer=b"what\r\n\r\n")),
}


class RegistryHarness:
    """A docker-registry with a proxy in front of it that can be told to fail; *text* is what is written after --to."""

    def __init__(self, registry: Any, front: Any) -> None:
        self.registry, self.front = registry, front
        self.text = f"http://{front.host}"

    def visible(self) -> dict[str, list[str]]:
        """Return the digests of each model's blobs, the GGUF's first, by "namespace/model:tag"."""
        found: dict[str, list[str]] = self.registry.visible()
        return found

    def blob(self, digest: str) -> bytes:
        """Return a blob's content."""
        data: bytes = self.registry.blob(digest)
        return data

    @property
    def faults(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """What makes a publication of library/demo fail half-way."""
        by_proxy = {name: partial(self.front.failing, plan) for name, plan in PLANS.items()}
        return by_proxy | {"the disk of the registry is full": self.registry.full_disk}


@contextmanager
def open_harness(_text: str, folder: Path) -> Iterator[RegistryHarness]:
    """Start a registry in *folder*."""
    if docker_registry.find_program() is None:
        pytest.skip("docker-registry is not installed")
    with docker_registry.running_registry(folder / "registry") as registry, proxy.fault_proxy(registry.host) as front:
        yield RegistryHarness(registry, front)
