"""What a registry may make at the first pull: an allow-list, as a map from served names to models.

An alias is served as `library/alias`, a repository `org/name` as `hf/org-name` (in the form that names must have).
Only what is listed is made, and no two models share a name, so a name means one model or none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.source import aliases
from pipeline.source.listing import repositories
from pipeline.store import slug

HUB_NAMESPACE = "hf"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/([A-Za-z0-9][\w.-]*|\*)", re.ASCII)
_LISTED_S = 600.0  # an organisation's list of repositories is asked for again after this
_MAX_BYTES = 1_000_000

List = Callable[[str], tuple[str, ...]]


class Offers:
    """The models that *entries* allow: aliases, "org/name", and "org/*" for all of an organisation.

    *listing* gives an organisation's repositories; *clock* gives seconds.

    Raises:
        UsageError: if an entry is none of these, or two have one name.
    """

    def __init__(
        self, entries: Iterable[str], listing: List = repositories, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models: dict[str, str] = {}
        self._organisations: list[str] = []
        self._listing, self._clock = listing, clock
        self._listed: dict[str, tuple[tuple[str, ...], float]] = {}
        known = aliases.load()
        for entry in dict.fromkeys(entries):
            if entry in known:
                self._add(f"library/{entry}", entry)
            elif not _REPOSITORY.fullmatch(entry):
                raise UsageError(
                    "is nothing that can be allowed",
                    where=repr(entry),
                    expected="an alias (see `gguf-pipeline models`), org/name or 'org/*'",
                    hint="a folder gets an alias by a row in models.toml",
                )
            elif entry.endswith("/*"):
                self._organisations.append(entry.removesuffix("/*"))
            else:
                self._add(served_name(entry), entry)

    @property
    def names(self) -> tuple[str, ...]:
        """The served names that are known without asking the Hub, sorted."""
        return tuple(sorted(self._models))

    @property
    def organisations(self) -> tuple[str, ...]:
        """The organisations that are allowed as a whole."""
        return tuple(self._organisations)

    def find(self, repository: str) -> str | None:
        """Return the model that is served as *repository* ("namespace/model"), or None if none is allowed.

        Raises:
            UsageError: if several repositories have this name.
            AccessError: if the Hub must be asked and gives no answer.
        """
        if repository in self._models:
            return self._models[repository]
        found = {
            model
            for organisation in self._organisations
            if repository.startswith(served_name(f"{organisation}/"))
            for model in self._repositories(organisation)
            if served_name(model) == repository
        }
        if len(found) > 1:
            raise UsageError(
                "several repositories have this name here",
                where=repository,
                found=", ".join(sorted(found)),
                hint="allow the one that is meant by its own name: --allow org/name",
            )
        return next(iter(found), None)

    def _add(self, name: str, model: str) -> None:
        if name in self._models:
            raise UsageError(
                "two models would be served under one name", where=name, found=f"{self._models[name]} and {model}"
            )
        self._models[name] = model

    def _repositories(self, organisation: str) -> tuple[str, ...]:
        found, until = self._listed.get(organisation, ((), float("-inf")))
        if self._clock() >= until:
            found = self._listing(organisation)
            self._listed[organisation] = found, self._clock() + _LISTED_S
        return found


def served_name(repository: str) -> str:
    """Return the name under which a repository of the Hub is served: "hf/org-name"."""
    organisation, _, name = repository.partition("/")
    return f"{HUB_NAMESPACE}/{slug(f'{organisation}-{name}')}" if name else f"{HUB_NAMESPACE}/{slug(organisation)}"


def read_entries(path: Path) -> list[str]:
    """Read an allow-list: one entry a line; empty lines and what follows "#" do not count.

    Raises:
        UsageError: if the file can not be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the allow-list cannot be read", where=path, found=error) from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]
