"""The seam between the flow and its targets, and the table of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline import discover
from pipeline.errors import UsageError
from pipeline.publish._release import Published, Release
from pipeline.store import Name
from pipeline.types import Blob, Log


class PublishTarget(Protocol):
    """An open target; leaving its context releases what it holds."""

    @property
    def staging_folder(self) -> Path:
        """The folder whose disk must hold the files while they are made."""

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published, before any work is done.

        Raises:
            UsageError: if a name is not valid, or there in another spelling.
        """

    def names(self, namespace: str, model: str, tags: Sequence[str]) -> tuple[Name, ...]:
        """Return the full name that each tag has at this target.

        Raises:
            UsageError: if one is not valid.
        """

    def staging(self, sizes: Sequence[int]) -> AbstractContextManager[list[Path]]:
        """Give one empty file for each coming GGUF of *sizes* bytes; those not published are removed at the end."""

    def publish(self, release: Release, log: Log) -> Published:
        """Make a release visible, all of it or, after an error, nothing.  Call it inside the staging context.

        The checks of the result say what was read back from the target, and what else it proved there.

        Raises:
            UsageError: if a name is not valid.
            AccessError, ResourceError: if the target refuses or is full.
        """

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:
        """Return the blobs that each of the tags names now, the GGUF first and the config last.

        Left out are a tag that names nothing, and a blob that is not there in the size that its manifest states.

        Raises:
            AccessError: if the target does not answer.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TargetKind(Protocol):
    """What a module of this package offers as TARGET."""

    @property
    def name(self) -> str:
        """The word that people write after --to."""

    @property
    def usage(self) -> str:
        """How it is written, such as "local" or "static:DIR"."""

    def accepts(self, text: str) -> bool:
        """Whether *text* names a target of this kind."""

    def open(self, text: str) -> PublishTarget:
        """Open the target that *text* names, or say why that is not possible."""


def targets() -> dict[str, TargetKind]:
    """Return every kind of target, by name."""
    return discover.load("pipeline.publish", "TARGET")


def open_target(text: str) -> PublishTarget:
    """Open the target that *text* names.

    Raises:
        UsageError: if no kind of target accepts it.
        AccessError: if it can not be reached or written.
    """
    known = targets()
    for kind in known.values():
        if kind.accepts(text):
            return kind.open(text)
    raise UsageError(
        "no such publish target",
        where=f"--to {redacted(text)}",
        expected=", ".join(kind.usage for kind in known.values()),
        hint="`local` is the embedded registry's folder",
    )


def redacted(text: str) -> str:
    """Return a target's text without a login, which may be in one that is no target, too."""
    scheme, separator, rest = text.partition("://")
    if separator:
        return f"{scheme}://{rest.rpartition('@')[2]}"
    is_target = any(kind.accepts(text) for kind in targets().values())
    return text if is_target else text.rpartition("@")[2]
