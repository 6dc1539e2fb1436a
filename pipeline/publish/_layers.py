"""The blobs around a GGUF, in the bytes that `ollama create` gives them (server/create.go)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.publish._release import Release, ReleaseEntry
from pipeline.store import Manifest, config_bytes, gojson, manifest
from pipeline.store.blobs import hash_bytes
from pipeline.types import Layer


@dataclass(frozen=True)
class Assembled:
    """An entry as blobs: its manifest, and by digest the content of every blob but the GGUF."""

    manifest: Manifest
    texts: Mapping[str, bytes]


def assemble(entry: ReleaseEntry) -> Assembled:
    """Make the manifest of an entry and the blobs that it names, in Ollama's order."""
    texts = [(kind, data, hash_bytes(data)) for kind, data in (*text_layers(entry), (manifest.CONFIG, config(entry)))]
    *layers, last = [Layer(kind, blob) for kind, _, blob in texts]
    made = Manifest(last, (Layer(manifest.MODEL, entry.gguf_blob), *layers))
    return Assembled(made, {blob.digest: data for _, data, blob in texts})


def manifests(release: Release) -> dict[str, Manifest]:
    """Return the manifest that each tag of *release* names; the GGUF files themselves are not looked at."""
    return {tag: made for entry in release.entries for made in [assemble(entry).manifest] for tag in entry.tags}


def text_layers(entry: ReleaseEntry) -> tuple[tuple[str, bytes], ...]:
    """Return media type and content of every layer after the model, in Ollama's order.

    Texts are kept byte for byte; params and messages are JSON as Go's Encoder writes it: keys of maps sorted, HTML's
    characters escaped, a newline at the end.
    """
    layers: list[tuple[str, bytes]] = []
    if entry.template:
        layers.append((manifest.TEMPLATE, entry.template.encode()))
    if entry.system:
        layers.append((manifest.SYSTEM, entry.system.encode()))
    layers += [(manifest.LICENSE, text.encode()) for text in entry.licenses if text]
    if entry.params:
        layers.append((manifest.PARAMS, gojson.encode(entry.params, sort_keys=True) + b"\n"))
    if entry.messages:
        messages = [{"role": role, "content": content} for role, content in entry.messages]
        layers.append((manifest.MESSAGES, gojson.encode(messages) + b"\n"))
    return tuple(layers)


def config(entry: ReleaseEntry) -> bytes:
    """Return the content of the config blob."""
    return config_bytes(
        entry.architecture,
        entry.parameter_count,
        entry.file_type,
        renderer=entry.renderer,
        parser=entry.parser,
        requires=entry.requires,
    )
