"""The target `local`: the embedded registry's own store, from which `gguf-pipeline serve` serves."""

from __future__ import annotations

from dataclasses import replace

from pipeline.publish._release import Published, Release
from pipeline.publish._store_target import StoreTarget, require_writable
from pipeline.store import LOCAL_HOST, Store, local_store_root, registry_host
from pipeline.types import Log


class LocalTarget(StoreTarget):
    """The store of `gguf-pipeline serve`; its models lie under one host folder, whatever the port of the day."""

    def publish(self, release: Release, log: Log) -> Published:
        """Write a release into the store; see `PublishTarget.publish`."""
        names, digests, checks = self.write(release, log)
        shown = [f"{replace(names[0], host=registry_host(), tag=entry.tags[0])}" for entry in release.entries]
        pulls = [f"ollama pull --insecure {name}" for name in shown]
        return Published(names, digests, ("gguf-pipeline serve", *pulls, release.use(shown[0])), checks)


class _Local:
    """The plug-in."""

    name = "local"
    usage = "local"

    def accepts(self, text: str) -> bool:
        """Whether *text* is "local"."""
        return text == self.name

    def open(self, text: str) -> LocalTarget:  # noqa: ARG002  # there is one local store
        """Open the embedded registry's store."""
        store = Store(local_store_root())
        require_writable(store, "set GGUF_PIPELINE_STORE to a folder of your own")
        return LocalTarget(store, LOCAL_HOST)


TARGET = _Local()
