"""A target that is a store on this machine: a GGUF is written where it stays, and named when all is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline import data
from pipeline.errors import FormatError
from pipeline.publish import _layers
from pipeline.publish._release import Release, ReleaseEntry
from pipeline.publish._target import Log
from pipeline.store import Manifest, Name, Store, manifest
from pipeline.types import Blob, Layer


class StoreTarget:
    """What the targets `local` and `ollama` share; *host* is the folder that their models lie under."""

    def __init__(self, store: Store, host: str) -> None:
        self.store = store
        self.host = host

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold nothing open."""

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published; see `PublishTarget.check`."""
        self.store.check_names([Name.parse(f"{self.host}/{namespace}/{model}:{tag}") for tag in tags])

    @contextmanager
    def staging(self, sizes: Sequence[int]) -> Iterator[list[Path]]:
        """Give one empty file for each coming GGUF, in the store's own blobs folder.

        What a killed publication left there is removed first: it may be as large as what is coming.
        """
        self.store.sweep()
        with ExitStack() as stack:
            yield [stack.enter_context(self.store.blob_writer()) for _ in sizes]

    def write(self, release: Release, log: Log) -> tuple[tuple[Name, ...], tuple[str, ...]]:
        """Put a release into the store; return its names and their manifests' digests."""
        pairs = release.names(self.host)
        with self.store.writing(log):
            manifests = {id(entry): self._add(entry) for entry in release.entries}
            digests = self.store.write_manifests([(name, manifests[id(entry)]) for name, entry in pairs])
        return tuple(name for name, _ in pairs), digests

    def _add(self, entry: ReleaseEntry) -> Manifest:
        """Store every blob of an entry; the model's is the last, so that an early error leaves the file in staging."""
        texts = tuple(Layer(kind, self.store.add_bytes(data)) for kind, data in _layers.text_layers(entry))
        config = Layer(manifest.CONFIG, self.store.add_bytes(_layers.config(entry)))
        return Manifest(config, (Layer(manifest.MODEL, self._add_gguf(entry)), *texts))

    def _add_gguf(self, entry: ReleaseEntry) -> Blob:
        if entry.gguf.parent != self.store.blobs_dir:
            return self.store.add_file(entry.gguf, entry.gguf_blob.digest)
        size = entry.gguf.stat().st_size
        if size != entry.gguf_blob.size:
            raise FormatError("the GGUF has another size", where=entry.gguf, expected=entry.gguf_blob.size, found=size)
        return self.store.commit_file(entry.gguf, entry.gguf_blob.digest)


def require_writable(store: Store, hint: str) -> None:
    """Refuse a store that we can not write to, before any work is done.

    Raises:
        AccessError: naming the folder, with *hint* as the next step.
    """
    for folder in (store.blobs_dir, store.manifests_dir):
        data.require_writable(folder, "the store can not be written", hint)
