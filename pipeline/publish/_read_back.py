"""What is visible under a name, read back: the manifest byte for byte, every blob's size, and the small blobs whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from pipeline.errors import FormatError
from pipeline.store import Manifest, Name
from pipeline.store.blobs import hash_bytes
from pipeline.store.manifest import MODEL
from pipeline.types import Blob, Check


class Readable(Protocol):
    """A place that models were published to, seen by somebody who reads."""

    def manifest_bytes(self, name: Name) -> bytes:
        """Return the manifest that *name* has there."""

    def blob_size(self, name: Name, digest: str) -> int | None:
        """Return the size of a blob of *name* in bytes, or None if it is not there."""

    def blob_bytes(self, name: Name, blob: Blob) -> bytes:
        """Return a small blob of *name*."""


def present(place: Readable, names: Iterable[Name]) -> dict[str, tuple[Blob, ...]]:
    """Return by tag the blobs that *names*, which are there, name in *place*: see `PublishTarget.published`.

    A manifest that is none names nothing.
    """
    found = {}
    for name in names:
        with suppress(FormatError):
            layers = Manifest.from_bytes(place.manifest_bytes(name), name).all_layers
            blobs = (layer.blob for layer in layers)
            found[name.tag] = tuple(blob for blob in blobs if place.blob_size(name, blob.digest) == blob.size)
    return found


def read_back(place: Readable, made: Sequence[tuple[Name, Manifest]]) -> tuple[Check, ...]:
    """Compare what *place* shows with what was *made*; the GGUF itself was read before it was published."""
    return tuple(_check(place, name, manifest) for name, manifest in made)


def _check(place: Readable, name: Name, manifest: Manifest) -> Check:
    found = place.manifest_bytes(name)
    if found != manifest.to_bytes():
        detail = f"the manifest is {hash_bytes(found).digest}, not {hash_bytes(manifest.to_bytes()).digest}"
        return Check(f"{name.tag} layers", "different", detail)
    bad = [*_differences(place, name, manifest)]
    n_small = sum(layer.media_type != MODEL for layer in manifest.all_layers)
    return Check(f"{name.tag} layers", "different" if bad else "proven", "; ".join(bad) or f"{n_small} read back")


def _differences(place: Readable, name: Name, manifest: Manifest) -> Iterator[str]:
    for layer in manifest.all_layers:
        size = place.blob_size(name, layer.blob.digest)
        if size != layer.blob.size:
            there = "missing" if size is None else f"{size} bytes"
            yield f"{layer.media_type} ({layer.blob.digest}) is {there}, not {layer.blob.size} bytes"
        elif layer.media_type != MODEL and (data := hash_bytes(place.blob_bytes(name, layer.blob))) != layer.blob:
            yield f"{layer.media_type} is {data.digest}, not {layer.blob.digest}"
