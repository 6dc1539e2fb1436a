"""What is published: each name with its size, what of it is shared, and where it came from."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import report as reports
from pipeline.errors import PipelineError, UsageError
from pipeline.store import Entry, Name, Store, local_name

_MAX_CONFIG = 1 << 20
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Item:
    """A published name.

    *size* is that of all its blobs, *shared* that of those which other names need too; in bytes.  *quantization* is
    what its config says, None where it says nothing.  *source*, *report* and *made* (when) are what the report of the
    publication says, None without one.
    """

    name: Name
    digest: str
    size: int
    shared: int
    modified: datetime
    quantization: str | None
    source: dict[str, Any] | None
    report: str | None
    made: str | None

    @property
    def id(self) -> str:
        """What `ollama list` shows as ID."""
        return self.digest.removeprefix("sha256:")[:12]

    @property
    def origin(self) -> str:
        """Where it came from, for people: "org/name@1a2b3c4d", or a path; with the adapter, if any."""
        if self.source is None:
            return ""
        commit = str(self.source.get("commit") or "")[:8]
        repository = self.source.get("repository")
        text = f"{repository}@{commit}" if repository else str(self.source.get("gguf") or self.source.get("folder"))
        adapter = self.source.get("adapter")
        return f"{text} + {Path(adapter).name}" if adapter else text

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"name": str(self.name), "modified": self.modified.isoformat()}


def inventory(store: Store, patterns: Sequence[str] = ()) -> tuple[Item, ...]:
    """List what *store* shows, the newest first; with *patterns*, only those names (as `choose` takes them).

    Raises:
        UsageError: if a pattern fits nothing, or a name is not there.
    """
    entries = store.list()
    users = Counter(blob for entry in entries for blob in _blobs(store, entry))
    made = reports.by_manifest()
    known = {entry.name for entry in entries}
    wanted = set(choose(store, patterns)) if patterns else known
    for name in sorted(wanted - known):
        store.manifest_bytes(name)  # says that it is not there, and what is like it
    return tuple(_item(store, entry, users, made.get(entry.digest)) for entry in entries if entry.name in wanted)


def choose(store: Store, patterns: Sequence[str]) -> tuple[Name, ...]:
    """Find the names that *patterns* mean: a model's name, or one with * ? [ ] in it, such as "demo:*".

    A pattern is compared with the whole name, with "namespace/model:tag", and, of the namespace library, "model:tag".

    A name need not be there.

    Raises:
        UsageError: if a pattern fits nothing.
    """
    known = [entry.name for entry in store.list()]
    found: dict[Name, None] = {}
    for pattern in patterns:
        if not _GLOB & set(pattern):
            found[local_name(pattern)] = None
            continue
        fitting = [name for name in known if any(fnmatch.fnmatchcase(text, pattern) for text in _spellings(name))]
        if not fitting:
            raise UsageError("no published model fits", where=pattern, hint=f"`{store.tool} list` shows what is there")
        found |= dict.fromkeys(sorted(fitting))
    return tuple(found)


def _spellings(name: Name) -> tuple[str, ...]:
    short = f"{name.repository}:{name.tag}"
    return (str(name), short, *([f"{name.model}:{name.tag}"] if name.namespace == "library" else []))


def _blobs(store: Store, entry: Entry) -> dict[str, int]:
    """Return digest and size of each blob of a model; one that it names twice counts once."""
    with suppress(PipelineError):  # removed meanwhile
        return {layer.blob.digest: layer.blob.size for layer in store.read_manifest(entry.name).all_layers}
    return {}


def _item(store: Store, entry: Entry, users: Counter[str], report: dict[str, Any] | None) -> Item:
    shared = sum(size for digest, size in _blobs(store, entry).items() if users[digest] > 1)
    return Item(
        entry.name,
        entry.digest,
        entry.size,
        shared,
        entry.modified,
        _quantization(store, entry),
        report["source"] if report else None,
        report.get("path") if report else None,
        report.get("written") if report else None,
    )


def _quantization(store: Store, entry: Entry) -> str | None:
    with suppress(PipelineError, OSError, ValueError, RecursionError, TypeError, KeyError):
        config = store.read_manifest(entry.name).config.blob
        if config.size <= _MAX_CONFIG:
            return str(json.loads(store.blob_path(config.digest).read_bytes())["file_type"])
    return None
