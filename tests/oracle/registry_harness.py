"""The target http://host:port in front of a real docker-registry, for the contract of all targets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
        return {}


@contextmanager
def open_harness(_text: str, folder: Path) -> Iterator[RegistryHarness]:
    """Start a registry in *folder*."""
    if docker_registry.find_program() is None:
        pytest.skip("docker-registry is not installed")
    with docker_registry.running_registry(folder / "registry") as registry, proxy.fault_proxy(registry.host) as front:
        yield RegistryHarness(registry, front)
