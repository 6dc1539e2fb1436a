"""What all targets share: a folder on this machine that coming GGUF files are written into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline import data
from pipeline.errors import FormatError
from pipeline.publish._release import ReleaseEntry
from pipeline.store import Name, Store


class StagedTarget:
    """Base of every target; *host* is the first part of the names that are published.

    Files are written into the store *staging*; without one, into a folder of the cache, from where they are sent.
    Files never get a name there: what has arrived at the target is found by its digest when the same is published
    again, so a broken publication goes on where it stopped, blob by blob.
    """

    def __init__(self, host: str, staging: Store | None = None) -> None:
        self.host = host
        self._staging = staging or Store(data.cache_home() / "publish")

    @property
    def staging_folder(self) -> Path:
        """The folder whose disk must hold the files while they are made."""
        return self._staging.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold nothing open."""

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published; see `PublishTarget.check`."""
        self.names(namespace, model, tags)

    def names(self, namespace: str, model: str, tags: Sequence[str]) -> tuple[Name, ...]:
        """Return the full name of each tag.

        Raises:
            UsageError: if one is not valid.
        """
        return tuple(Name.parse(f"{self.host}/{namespace}/{model}:{tag}") for tag in tags)

    @contextmanager
    def staging(self, sizes: Sequence[int]) -> Iterator[list[Path]]:
        """Give one empty file for each coming GGUF; see `PublishTarget.staging`.

        What a killed publication left there is removed first: it may be as large as what is coming.
        """
        self._staging.sweep()
        with ExitStack() as stack:
            yield [stack.enter_context(self._staging.blob_writer()) for _ in sizes]

    def keep_gguf(self, entry: ReleaseEntry) -> None:
        """Make an entry's GGUF a blob of the staging store: renamed if it was written there, else copied.

        Raises:
            FormatError: if it has another size than it was written with.
        """
        if entry.gguf.parent != self._staging.blobs_dir:
            self._staging.add_file(entry.gguf, entry.gguf_blob.digest)
            return
        size = entry.gguf.stat().st_size
        if size != entry.gguf_blob.size:
            raise FormatError("the GGUF has another size", where=entry.gguf, expected=entry.gguf_blob.size, found=size)
        self._staging.commit_file(entry.gguf, entry.gguf_blob.digest)
