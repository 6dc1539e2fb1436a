"""Short names for models: the shipped models.toml, the user's own, and the one in the current folder.

A table of models.toml is one alias:

    [qwen]
    repo = "Qwen/Qwen2.5-0.5B-Instruct"    # or folder = "...", relative to the models.toml it stands in
    branch = "main"                        # "main" if left out; only with repo
    quant = "Q4_K_M"                       # what is made if nobody says; "Q4_K_M" if left out
    family = "chatml"                      # the chat family; found from the template if left out
    description = "..."

    [qwen.modelfile]                       # what its Modelfile says; see pipeline.modelfile.overrides

A later file replaces the whole row of the same name: shipped, `$XDG_CONFIG_HOME/gguf-pipeline`, current folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.errors import UsageError
from pipeline.strict_toml import read_toml

_FILE = "models.toml"
_MAX_BYTES = 1_000_000
_TEXTS = ("repo", "folder", "branch", "quant", "family", "description")
_TABLES = ("modelfile",)
_KEYS = (*_TEXTS, *_TABLES)
# An alias becomes a model's name in a registry: the characters that Ollama takes there, in lower case.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}", re.ASCII)
_QUANT = re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)*", re.ASCII)


@dataclass(frozen=True)
class Alias:
    """One row of models.toml; exactly one of *repo* and *folder* (absolute) is set; *origin* is the file.

    *modelfile* is its table of that name, not looked into.
    """

    name: str
    repo: str | None
    folder: Path | None
    branch: str
    quant: str
    family: str | None
    description: str
    origin: Path
    modelfile: Mapping[str, Any] = field(default_factory=dict)


def load() -> dict[str, Alias]:
    """Read all aliases, by name, in alphabetic order.

    Raises:
        UsageError: if a models.toml is not what the module's text says.
    """
    rows: dict[str, Alias] = {}
    for path in (data.path(_FILE), data.config_home() / _FILE, Path.cwd() / _FILE):
        if path.is_file():
            rows |= read(path)
    return dict(sorted(rows.items()))


def read(path: Path) -> dict[str, Alias]:
    """Read the aliases of one models.toml.

    Raises:
        UsageError: if it is not TOML, or has a row that is not an alias.
    """
    table = read_toml(path, _MAX_BYTES, "correct the file, or take it away")
    return {name: _row(path, name, row) for name, row in table.items()}


def _row(path: Path, name: str, row: Any) -> Alias:
    where = f"{path}, [{name}]"
    if not _NAME.fullmatch(name):
        raise UsageError("an alias has an impossible name", where=where, expected="lower case letters, digits, . _ -")
    if not isinstance(row, dict):
        raise UsageError("is not a table", where=where, expected=f'[{name}] and below it repo = "org/name"')
    for key, value in row.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            raise UsageError(
                f"has the unknown key {key!r}",
                where=where,
                expected=", ".join(_KEYS),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        if key in _TABLES:
            if not isinstance(value, dict):
                raise UsageError(f"{key} is not a table", where=where, expected=f"[{name}.{key}]", found=repr(value))
        elif not isinstance(value, str) or (not value and key != "description"):
            raise UsageError(f"{key} is not a text", where=where, expected="a string", found=repr(value))
    _check_target(where, row)
    quant = row.get("quant", "Q4_K_M")
    if not _QUANT.fullmatch(quant):
        raise UsageError("quant is not spelt like one", where=where, expected="such as Q4_K_M", found=quant)
    return Alias(
        name=name,
        repo=row.get("repo"),
        folder=(path.parent / row["folder"]).resolve() if "folder" in row else None,
        branch=row.get("branch", "main"),
        quant=quant,
        family=row.get("family"),
        description=row.get("description", ""),
        origin=path,
        modelfile=row.get("modelfile", {}),
    )


def _check_target(where: str, row: dict[str, Any]) -> None:
    if ("repo" in row) == ("folder" in row):
        found = "both" if "repo" in row else "neither"
        raise UsageError("does not say where the model is", where=where, expected="repo or folder", found=found)
    if "folder" in row and "branch" in row:
        raise UsageError("a folder has no branches", where=where, hint="leave branch out")
    if "repo" in row and row["repo"].count("/") != 1:
        raise UsageError("repo is not a repository", where=where, expected="org/name", found=row["repo"])
