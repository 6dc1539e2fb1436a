"""One release for several targets: to each wholly or not at all, and what became of it at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from pipeline import publish
from pipeline.errors import PipelineError
from pipeline.types import Blob, Check, Log

Targets = dict[str, publish.PublishTarget]


@dataclass(frozen=True)
class Delivery:
    """What became of a release at one target.

    *target* is what was asked for, without a login in it.  *state* is "published", "unchanged" (it was there) or
    "failed" (*error* says why, and nothing new is visible).  *names* are all names there and *manifests* their digests,
    in the same order; *commands* are to be pasted.
    """

    target: str
    state: str
    names: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    error: str | None = None

    @property
    def named(self) -> Iterator[tuple[str, str]]:
        """Pair each name with the digest of its manifest."""
        return zip(self.names, self.manifests, strict=True)


@dataclass(frozen=True)
class Visible:
    """What is visible of a release as "namespace/model".

    By tag: the digest of its manifest, and the blobs that it names, the GGUF first and the config last.
    """

    namespace: str
    model: str
    manifests: dict[str, str]
    blobs: dict[str, tuple[Blob, ...]]


@contextmanager
def opened(texts: Sequence[str]) -> Iterator[Targets]:
    """Open every target, by its text without a password; one that is named twice counts once.

    Raises:
        UsageError: if no kind of target accepts one.
        AccessError: if one can not be reached or written.
    """
    with ExitStack() as stack:
        yield {publish.redacted(text): stack.enter_context(publish.open_target(text)) for text in dict.fromkeys(texts)}


def deliver(targets: Targets, release: publish.Release, log: Log) -> tuple[tuple[Delivery, ...], PipelineError | None]:
    """Publish to each target; return what became of it at each, in their order, and the first error, if any.

    The files lie in the first target's staging, which takes them away: it comes last.
    """
    found, first = {}, None
    for text in reversed(targets):
        try:
            found[text] = _published(text, targets[text].publish(release, log))
        except PipelineError as error:
            found[text] = Delivery(publish.redacted(text), "failed", error=str(error))
            first = error
    return tuple(found[text] for text in targets), first


def visible(release: publish.Release) -> Visible:
    """Say what *release* makes visible, wherever it is published."""
    made = publish.manifests(release)
    blobs = {tag: tuple(layer.blob for layer in one.all_layers) for tag, one in made.items()}
    return Visible(release.namespace, release.model, {tag: one.digest for tag, one in made.items()}, blobs)


def there_already(targets: Targets, wanted: Visible, before: Sequence[Delivery]) -> tuple[Delivery, ...]:
    """Return the targets where all tags name just what is *wanted*, and nothing is missing.

    Their commands are those that they gave *before*.

    Raises:
        AccessError: if a target does not answer.
    """
    commands = {one.target: one.commands for one in before}
    place, found = (wanted.namespace, wanted.model, tuple(wanted.blobs)), []
    for text, target in targets.items():
        if target.published(*place) == wanted.blobs:
            names = tuple(map(str, target.names(*place)))
            found.append(
                Delivery(
                    publish.redacted(text), "unchanged", names, tuple(wanted.manifests.values()), commands.get(text, ())
                )
            )
    return tuple(found)


def all_checks(delivered: Sequence[Delivery]) -> tuple[Check, ...]:
    """Gather what each target proved; of several targets, each check says whose it is."""
    if len(delivered) == 1:
        return delivered[0].checks
    return tuple(replace(check, name=f"{check.name} in {one.target}") for one in delivered for check in one.checks)


def _published(text: str, done: publish.Published) -> Delivery:
    return Delivery(
        publish.redacted(text), "published", tuple(map(str, done.names)), done.digests, done.commands, done.checks
    )
