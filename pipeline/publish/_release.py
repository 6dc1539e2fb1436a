"""What is published, and what came of it, as data."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UsageError
from pipeline.runtime.ollama import daemon_url
from pipeline.store import Name, slug
from pipeline.types import Blob, Check

# The check that says whether Ollama can pull from there; the registry's settings decide, not what was published.
PULL_CHECK = "ollama pull"

_NAME_RULE = "model or namespace/model, in lower-case letters and digits joined by . _ or -; the tags are ours"


@dataclass(frozen=True)
class ReleaseEntry:
    """One GGUF with everything around it; *tags* all name it, the first is the one shown.

    *gguf* is a file from the target's staging, or any other file (which is copied); its content is *gguf_blob*.
    *params* are Ollama's parameters, a list where one may repeat (stop); *messages* are pairs of role and content.
    A text that is None or empty gets no layer; *renderer*, *parser* and *requires* go into the config.
    *fallback_template* is a Go template for a place that would otherwise make one up.
    """

    tags: tuple[str, ...]
    gguf: Path
    gguf_blob: Blob
    architecture: str
    parameter_count: int
    file_type: str
    template: str | None = None
    system: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[tuple[str, str]] = ()
    licenses: Sequence[str] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    fallback_template: str | None = None


class Prompt(NamedTuple):
    """A conversation, and the *text* that the checkpoint's own template renders of it, without a leading *bos*."""

    messages: tuple[Mapping[str, str], ...]
    text: str
    bos: str


@dataclass(frozen=True)
class About:
    """What people are told of a release, where there is a place for it: facts of the source and of the making.

    *errors* are, by recipe, the largest relative error of a tensor and its name; *is_sample* says that not every row
    was measured.
    """

    repository: str | None = None
    commit: str | None = None
    license: str | None = None
    is_embedding: bool = False
    errors: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    is_sample: bool = False
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """The entries that are published together under "namespace/model".

    *prompts* renders conversations, for a place that can be asked for its own rendering; *about* is for people.
    """

    namespace: str
    model: str
    entries: tuple[ReleaseEntry, ...]
    prompts: Callable[[], tuple[Prompt, ...]] = tuple
    about: About = field(default_factory=About)

    def use(self, name: Name | str) -> str:
        """Return the command that tries a published model: a question, or a text to make a vector of."""
        if not self.about.is_embedding:
            return f"ollama run {name}"
        body = json.dumps({"model": str(name), "input": "Why is the sky blue?"})
        return f"curl {daemon_url()}/api/embed -d {shlex.quote(body)}"

    def names(self, host: str) -> tuple[tuple[Name, ReleaseEntry], ...]:
        """Pair the full name of each tag with its entry, in order.

        Raises:
            UsageError: if a name is not valid, or two entries claim one tag.
        """
        pairs = [
            (Name.parse(f"{host}/{self.namespace}/{self.model}:{tag}"), entry)
            for entry in self.entries
            for tag in entry.tags
        ]
        seen: set[str] = set()
        for name, _ in pairs:
            if str(name).lower() in seen:
                raise UsageError(
                    "two entries of a release have one tag", where=name, hint="name each quantization once"
                )
            seen.add(str(name).lower())
        return tuple(pairs)


@dataclass(frozen=True)
class Published:
    """What is visible now.

    *names* are the names in the target's store and *digests* their manifests' digests, in the same order; *commands*
    are to be pasted as they stand; *checks* say what the target has proven about it.
    """

    names: tuple[Name, ...]
    digests: tuple[str, ...]
    commands: tuple[str, ...]
    checks: tuple[Check, ...] = ()


def require_name(text: str) -> None:
    """Refuse a name given by a person that could be published only after a change.

    Raises:
        UsageError: with the nearest valid name as the hint.
    """
    namespace, model = split_name(re.sub(r":[^/]*$", "", text))  # what follows a colon is a tag
    if text not in (f"{namespace}/{model}", model):
        near = f"{namespace}/{model}" if "/" in text else model
        raise UsageError(
            "not a valid model name", where=f"--name {text}", expected=_NAME_RULE, hint=f"try --name {near}"
        )


def split_name(text: str) -> tuple[str, str]:
    """Turn "model", "namespace/model" or a repository's or folder's name into a valid namespace and model.

    A valid name stays as it is; without a namespace it is "library".

    Raises:
        UsageError: if no name can be made of it, or it has more parts than two.
    """
    namespace, slash, model = text.rpartition("/")
    if "/" in namespace:
        raise UsageError(
            "a model's name has two parts at most",
            where=text,
            expected="model or namespace/model",
            hint=f"try {namespace.rpartition('/')[2]}/{model}; which registry serves it is not part of the name",
        )
    if not slash:
        return "library", slug(model)
    return re.sub(r"\.|_{2,}|-{2,}", "-", slug(namespace)), slug(model)
