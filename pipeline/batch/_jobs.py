"""The jobs file: TOML, with `[defaults]` and any number of `[[job]]`, multiplied out and grouped by model.

A key is a row of `_KEYS`; one that is not there is refused.  Paths are relative to the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import data, quant
from pipeline.errors import UsageError
from pipeline.job import Job
from pipeline.modelfile import Overrides, read_table
from pipeline.quant import Options
from pipeline.strict_toml import read_toml
from pipeline.tuning import Importance, RecipeFile, Tuning, read_importance, read_recipe_file

_MAX_BYTES = 10_000_000
_MAX_JOBS = 10_000
_TOP = ("defaults", "job")


@dataclass(frozen=True)
class _At:
    """A place in the file, for messages: *folder* is that of the file."""

    path: Path
    table: str

    @property
    def folder(self) -> Path:
        return self.path.parent.absolute()

    def error(self, what: str, **parts: Any) -> UsageError:
        return UsageError(what, where=f"{self.path}, {self.table}", **parts)


def read_jobs(path: Path) -> tuple[Job, ...]:
    """Read a jobs file: models x adapters, each with its quantizations and targets in one job, so that it is read once.

    Two `[[job]]` that differ in their quantizations alone, or in their targets alone, become one.

    Raises:
        UsageError: if the file is no such file; it says where.
    """
    tables = _load(path)
    defaults = _checked(_At(path, "[defaults]"), tables.get("defaults", {}))
    rows = tables.get("job", [])
    if not isinstance(rows, list) or not rows:
        raise _At(path, "[[job]]").error("there is no job", expected='[[job]] and below it model = "..."')
    jobs: list[Job] = []
    for number, row in enumerate(rows, 1):
        at = _At(path, f"[[job]] {number}")
        jobs += _multiplied(at, defaults | _checked(at, row))
        if len(jobs) > _MAX_JOBS:
            raise at.error("are too many jobs", expected=f"at most {_MAX_JOBS:,}")
    return _grouped(jobs)


def _load(path: Path) -> dict[str, Any]:
    tables = read_toml(path, _MAX_BYTES)
    for name in tables:
        _known(_At(path, f"[{name}]"), name, _TOP)
    return tables


def _known(at: _At, key: str, known: Any) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else None
        raise at.error(f"has the unknown key {key!r}", expected=", ".join(known), hint=hint)


def _checked(at: _At, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise at.error("is not a table", found=repr(row)[:80])
    for key in row:
        _known(at, key, _KEYS)
    for one, many in (("model", "models"), ("adapter", "adapters")):
        if one in row and many in row:
            raise at.error(f"says both {one} and {many}", hint="keep one of them")
    return {_KEYS[key][0]: _KEYS[key][1](_At(at.path, f"{at.table}, {key}"), value) for key, value in row.items()}


def _text(at: _At, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise at.error("is not a text", found=repr(value)[:80])
    return value


def _texts(at: _At, value: Any) -> tuple[str, ...]:
    texts = tuple(_text(at, one) for one in (value if isinstance(value, list) else [value]))
    if not texts:
        raise at.error("is an empty list")
    return tuple(dict.fromkeys(texts))


def _switch(at: _At, value: Any) -> bool:
    if not isinstance(value, bool):
        raise at.error("is not a switch", expected="true or false", found=repr(value)[:80])
    return value


def _number(at: _At, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise at.error("is not a number", expected="a whole number, not below 0", found=repr(value)[:80])
    return value


def _quants(at: _At, value: Any) -> tuple[str, ...]:
    names = tuple(quant.ALIASES.get(name.upper(), name.upper()) for name in _texts(at, value))
    if unknown := [name for name in names if name not in quant.recipes()]:
        raise at.error("is no quantization", expected=", ".join(sorted(quant.recipes())), found=unknown[0])
    return names


def _models(at: _At, value: Any) -> tuple[str, ...]:
    return tuple(_model(at, text) for text in _texts(at, value))


def _model(at: _At, text: str) -> str:
    """Leave aliases and repositories as they are; make a path absolute."""
    is_path = text in (".", "..", "~") or text.startswith(("./", "../", "/", "~/"))
    if is_path or (text.lower().endswith(".gguf") and (at.folder / text).is_file()):
        return str(at.folder / data.user_path(text))
    return text


def _folders(at: _At, value: Any) -> tuple[Path, ...]:
    return tuple(_folder(at, text) for text in _texts(at, value))


def _folder(at: _At, value: Any) -> Path:
    path = at.folder / data.user_path(_text(at, value))
    if not path.is_dir():
        raise at.error("is not a folder", found=path)
    return path


def _overrides(at: _At, value: Any) -> Overrides:
    if not isinstance(value, dict):
        raise at.error("is not a table", expected='{ system = "..." }', found=repr(value)[:80])
    return read_table(value, f"{at.path}, {at.table}", at.folder)


def _imatrix(at: _At, value: Any) -> Importance:
    return read_importance(at.folder / data.user_path(_text(at, value)))


def _recipe(at: _At, value: Any) -> RecipeFile:
    return read_recipe_file(at.folder / data.user_path(_text(at, value)))


# What may stand in a table: how the value is called here, and how it is read.
_KEYS: dict[str, tuple[str, Callable[[_At, Any], Any]]] = {
    "model": ("models", _models), "models": ("models", _models),
    "adapter": ("adapters", _folders), "adapters": ("adapters", _folders),
    "quants": ("quants", _quants), "to": ("targets", _texts), "name": ("name", _text), "tags": ("tags", _texts),
    "latest": ("latest", _switch), "proof": ("proof", _text), "errors": ("errors", _text),
    "threads": ("threads", _number), "requantize": ("requantize", _switch), "again": ("again", _switch),
    "with_template": ("with_template", _switch), "templates": ("templates", _folder),
    "force": ("force", _switch), "engine": ("engine", _text), "modelfile": ("overrides", _overrides),
    "imatrix": ("imatrix", _imatrix), "recipe": ("recipe", _recipe),
}  # fmt: skip


def _multiplied(at: _At, row: dict[str, Any]) -> list[Job]:
    row = dict(row)
    models, adapters = row.pop("models", ()), row.pop("adapters", (None,))
    if not models:
        raise at.error("names no model", expected='model = "..." here or in [defaults]')
    if "name" in row and len(models) * len(adapters) > 1:
        raise at.error("gives one name to several models", found=row["name"], hint="write one [[job]] for each")
    recipe = row.pop("recipe", RecipeFile(None, Options()))
    row.setdefault("quants", (recipe.recipe,) if recipe.recipe else ())
    row["tuning"] = Tuning(recipe.options, row.pop("imatrix", None))
    return [Job(model, adapter=adapter, **row) for model in models for adapter in adapters]


def _grouped(jobs: list[Job]) -> tuple[Job, ...]:
    """Join jobs that differ in their quantizations alone, then those that differ in their targets alone."""
    for name in ("quants", "targets"):
        groups: dict[tuple[Job, tuple[str, ...]], Job] = {}
        for job in jobs:
            # An importance matrix, which has no hash, is known by its description.
            key = (replace(_with(job, name, ()), tuning=Tuning()), job.tuning.describe())
            before = getattr(groups[key], name) if key in groups else ()
            groups[key] = _with(job, name, tuple(dict.fromkeys((*before, *getattr(job, name)))))
        jobs = list(groups.values())
    return tuple(jobs)


def _with(job: Job, name: str, values: tuple[str, ...]) -> Job:
    change: dict[str, Any] = {name: values}
    return replace(job, **change)
