"""A target that is a store on this machine: a GGUF is written where it stays, and named when all is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline import data
from pipeline.publish import _layers
from pipeline.publish._read_back import present, read_back
from pipeline.publish._release import Release, ReleaseEntry
from pipeline.publish._staged import StagedTarget
from pipeline.store import Manifest, Name, Store
from pipeline.types import Blob, Check, Log


class StoreTarget(StagedTarget):
    """What the targets `local` and `ollama` share; *host* is the folder that their models lie under."""

    def __init__(self, store: Store, host: str) -> None:
        super().__init__(host, store)
        self.store = store

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published, or are there in another spelling; see `PublishTarget.check`."""
        self.store.check_names(self.names(namespace, model, tags))

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:
        """Say what the tags name now; see `PublishTarget.published`."""
        there = [name for name in self.names(namespace, model, tags) if self.store.manifest_path(name).is_file()]
        return present(StoreReader(self.store), there)

    def write(self, release: Release, log: Log) -> tuple[tuple[Name, ...], tuple[str, ...], tuple[Check, ...]]:
        """Put a release into the store; return its names, their manifests' digests, and what was read back."""
        pairs = release.names(self.host)
        with self.store.writing(log.stage):
            manifests = {id(entry): self._add(entry) for entry in release.entries}
            made = [(name, manifests[id(entry)]) for name, entry in pairs]
            digests = self.store.write_manifests(made)
            checks = read_back(StoreReader(self.store), made)  # before anybody may remove them
        return tuple(name for name, _ in pairs), digests, checks

    def _add(self, entry: ReleaseEntry) -> Manifest:
        """Store every blob of an entry; the model's is the last, so that an early error leaves the file in staging."""
        made = _layers.assemble(entry)
        for text in made.texts.values():
            self.store.add_bytes(text)
        self.keep_gguf(entry)
        return made.manifest


class StoreReader:
    """A store, as `read_back` reads it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def manifest_bytes(self, name: Name) -> bytes:
        """Return a manifest; see `Readable`."""
        return self._store.manifest_bytes(name)

    def blob_size(self, name: Name, digest: str) -> int | None:  # noqa: ARG002  # a blob belongs to no name
        """Return the size of a blob; see `Readable`."""
        path = self._store.blob_path(digest)
        return path.stat().st_size if path.is_file() else None

    def blob_bytes(self, name: Name, blob: Blob) -> bytes:  # noqa: ARG002
        """Return a blob; see `Readable`."""
        return self._store.blob_path(blob.digest).read_bytes()


def require_writable(store: Store, hint: str) -> None:
    """Refuse a store that we can not write to, before any work is done.

    Raises:
        AccessError: naming the folder, with *hint* as the next step.
    """
    for folder in (store.blobs_dir, store.manifests_dir):
        data.require_writable(folder, "the store can not be written", hint)
