"""Model names: "host/namespace/model:tag", strict enough for Ollama and for every registry.

Two sets of rules.  What exists in a store obeys Ollama's (types/model/name.go), and a `Name` can not break them: so a
name is always a safe relative path.  What we publish obeys the rules of the CNCF distribution registry as well, which
wants lower case.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import UsageError

DEFAULT_HOST = "localhost:11500"

_MAX_PART = 80
_LENIENT = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_STRICT = {
    "host": re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"(?=.{1,80}\Z)[a-z0-9]+([_-][a-z0-9]+)*"),
    "model": re.compile(r"(?=.{1,80}\Z)[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"),
    "tag": _LENIENT["tag"],
}
_RULES = {
    "host": "lower-case letters, digits and _ . : - such as localhost:11500",
    "namespace": "lower-case letters and digits, joined by single _ or -, 80 at most",
    "model": "lower-case letters and digits, joined by . _ __ or -, 80 at most",
    "tag": "letters, digits and _ . - (not first), 80 at most, such as Q4_K_M",
}


@dataclass(frozen=True, order=True)
class Name:
    """A model's full name.  Valid by Ollama's own rules, always.

    Raises:
        UsageError: if a part breaks them.
    """

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        _check_parts(self, _LENIENT)

    @classmethod
    def parse(
        cls,
        text: str,
        default_host: str = DEFAULT_HOST,
        default_namespace: str = "library",
        default_tag: str = "latest",
        *,
        strict: bool = True,
    ) -> Name:
        """Read "[host/][namespace/]model[:tag]"; a host needs the namespace beside it, as in Ollama.

        With *strict* off, the name may be anything that Ollama itself accepts: for models that somebody else stored.

        Raises:
            UsageError: if the name is not valid.
        """
        *front, last = text.split("/")
        model, colon, tag = last.partition(":")
        if len(front) > 2 or (len(front) == 1 and re.search(r"[.:]", front[0])):
            raise UsageError(
                "not a model name",
                where=text,
                expected="model, namespace/model or host/namespace/model, each with :tag if wanted",
                hint="a name with a host has three parts, such as localhost:11500/library/demo:latest",
            )
        namespace = front.pop() if front else default_namespace
        host = front.pop() if front else default_host
        name = cls(host, namespace, model, tag if colon else default_tag)
        if strict:
            _check_parts(name, _STRICT)
            _check_reserved(name)
        return name

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def repository(self) -> str:
        """The name inside its registry: "namespace/model"."""
        return f"{self.namespace}/{self.model}"

    @property
    def path(self) -> PurePosixPath:
        """Where the manifest lies, relative to the manifests/ folder."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)


def slug(text: str) -> str:
    """Turn "org/My Model", an alias or a folder's name into a valid model name ("my-model").

    The organisation is dropped, accents too; what has no place in a name becomes "-".

    Raises:
        UsageError: if nothing is left.
    """
    last = text.rstrip("/").rpartition("/")[2]
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode().lower()
    parts = re.split(r"([^a-z0-9]+)", plain)
    joined = "".join(part if i % 2 == 0 else _separator(part) for i, part in enumerate(parts))
    name = joined.strip("._-")[:_MAX_PART].rstrip("._-")
    if not name:
        raise UsageError(
            "no model name can be made of this", where=text, hint="name the model yourself: --name library/my-model"
        )
    return name


def _separator(run: str) -> str:
    """Keep a run between letters where a model name may have it."""
    return run if run in (".", "_", "__") or set(run) == {"-"} else "-"


def _check_parts(name: Name, rules: dict[str, re.Pattern[str]]) -> None:
    for part, rule in rules.items():
        value = getattr(name, part)
        if not rule.fullmatch(value):
            raise UsageError(
                f"not a valid {part} of a model name",
                where=f"{name.host}/{name.namespace}/{name.model}:{name.tag}",
                expected=_RULES[part],
                found=repr(value),
                hint=_suggest(part, value),
            )


def _suggest(part: str, value: str) -> str | None:
    """Offer the nearest valid value, if there is one."""
    if part not in ("namespace", "model"):
        return None
    try:
        near = slug(value)
    except UsageError:
        return None
    near = re.sub(r"[._-]+", "-", near) if part == "namespace" else near
    return f"try {near!r}"


def _check_reserved(name: Name) -> None:
    """Refuse tags that Ollama takes for something else (internal/modelref)."""
    tag = name.tag.lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise UsageError(
            "Ollama keeps this tag for itself",
            where=str(name),
            found=name.tag,
            hint="choose another tag, such as Q4_K_M",
        )
