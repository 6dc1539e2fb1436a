"""What a target has already of a release that is not made yet: for a dry run, and for the one that waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.publish import _layers
from pipeline.publish._release import Release, ReleaseEntry
from pipeline.publish._target import PublishTarget
from pipeline.store.manifest import MODEL
from pipeline.types import Blob


@dataclass(frozen=True)
class Coming:
    """A blob that an entry will have.

    *is_there* is None for a GGUF of a size that is there: its digest is known when it is written, and it is sent if
    that is another one.  *digest* is None for a GGUF.
    """

    media_type: str
    digest: str | None
    size: int
    is_there: bool | None


@dataclass(frozen=True)
class Already:
    """What is there of one entry: its blobs, and those of its tags that name something now."""

    blobs: tuple[Coming, ...]
    replaces: tuple[str, ...]

    @property
    def n_there(self) -> int:
        """How many blobs need not be sent, for sure."""
        return sum(blob.is_there is True for blob in self.blobs)

    @property
    def bytes_to_send(self) -> int:
        """Bytes of the other blobs."""
        return sum(blob.size for blob in self.blobs if not blob.is_there)


def already_there(target: PublishTarget, release: Release) -> tuple[Already, ...]:
    """Ask *target* what it has of each entry; of the GGUF only its size must be known.

    Raises:
        AccessError: if the target does not answer.
    """
    tags = [tag for entry in release.entries for tag in entry.tags]
    named = target.published(release.namespace, release.model, tags)
    return tuple(_already(entry, named) for entry in release.entries)


def _already(entry: ReleaseEntry, named: Mapping[str, tuple[Blob, ...]]) -> Already:
    there = {blob.digest for blobs in named.values() for blob in blobs}
    sizes = {blobs[0].size for blobs in named.values() if blobs}
    coming = []
    for layer in _layers.assemble(entry).manifest.all_layers:
        if layer.media_type == MODEL:
            known = None if layer.blob.size in sizes else False
            coming.append(Coming(MODEL, None, layer.blob.size, known))
        else:
            blob = layer.blob
            coming.append(Coming(layer.media_type, blob.digest, blob.size, blob.digest in there))
    return Already(tuple(coming), tuple(tag for tag in entry.tags if tag in named))
