"""Find a model and bring it onto this machine.

MODEL is, in this order of precedence:

1. a path, written as one (`./x`, `../x`, `/x`, `~/x`): that folder, or that GGUF file; `x.gguf` too if it is there;
2. an existing folder with a config.json in it, even if an alias has the same name (a note says so);
3. an alias of models.toml, optionally `alias@revision`;
4. `org/name[@revision]`, a repository of the Hugging Face Hub (or of HF_ENDPOINT).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pipeline.errors import InputError, UsageError
from pipeline.source import aliases, hub
from pipeline.source.folder import open_folder
from pipeline.source.ggufs import SUFFIX, open_gguf
from pipeline.source.hub import Log, Progress, silent
from pipeline.types import Source

__all__ = ["Log", "Progress", "aliases", "resolve"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(
    model: str, *, revision: str | None = None, log: Log | None = None, progress: Progress | None = None
) -> Source:
    """Find *model* and make sure that its files are on this machine.

    Args:
        model: a path, an alias, or `org/name`; the last two may end in `@revision`.
        revision: a branch, tag or commit of the repository.
        log: takes one line of text for what a person should know.
        progress: takes (file, bytes done, bytes in all) while files come from the Hub.

    Raises:
        UsageError: if *model* names nothing, or a revision is given for a folder or a file.
        InputError: if what it names is neither a checkpoint nor a GGUF.
        AccessError: if the repository cannot be reached or refuses.
        ResourceError: if the disk is too small.
    """
    if model.lower().endswith(SUFFIX) and (_is_path(model) or Path(model).is_file()):
        _no_revision(model, revision)
        return open_gguf(Path(model).expanduser())
    name, at, tail = model.partition("@")
    if not name or (at and not tail):
        raise UsageError("is no model", where=repr(model), expected="an alias, org/name[@revision], or a folder")
    if _is_path(model) or (Path(model) / "config.json").exists():
        return _folder(model, revision, log or silent)
    if tail and revision not in (None, tail):
        raise UsageError("has two revisions", where=model, found=f"{tail} and {revision}", hint="keep one of them")
    return _named(name, tail or revision, log or silent, progress)


def _is_path(model: str) -> bool:
    return model in (".", "..", "~") or model.startswith(("./", "../", "/", "~/"))


def _folder(model: str, revision: str | None, log: Log) -> Source:
    _no_revision(model, revision)
    if not _is_path(model) and model in aliases.load():
        log(f"{model} is the folder here, not the alias of that name")
    return open_folder(Path(model).expanduser())


def _no_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError("a folder or a file has no revisions", where=model, found=revision, hint="leave it out")


def _named(name: str, revision: str | None, log: Log, progress: Progress | None) -> Source:
    """Resolve an alias or a repository."""
    row = aliases.load().get(name)
    if row is None and _REPOSITORY.fullmatch(name):
        return hub.fetch(name, revision, log=log, progress=progress)
    if row is None:
        raise _unknown(name)
    if row.repo is not None:
        found = hub.fetch(row.repo, revision or row.branch, log=log, progress=progress)
        return Source(name, found.folder, found.repository, found.revision, found.commit, alias=name, family=row.family)
    if revision is not None:
        raise UsageError("this alias is a folder, which has no revisions", where=name, found=revision)
    assert row.folder is not None  # noqa: S101  a row has one of the two
    return Source(name, open_folder(row.folder).folder, alias=name, family=row.family)


def _unknown(name: str) -> UsageError | InputError:
    if Path(name).is_file():
        return InputError(
            "is a file, neither a checkpoint folder nor a GGUF", where=name, hint="name the folder that it is in"
        )
    if Path(name).is_dir():
        return InputError(
            "is a folder without config.json", where=name, hint="name the folder that holds the checkpoint"
        )
    near = difflib.get_close_matches(name.lower(), aliases.load(), n=3)
    return UsageError(
        "is no model",
        where=name,
        expected="an alias, org/name[@revision], or a folder written ./name",
        hint=f"did you mean {' or '.join(near)}?" if near else "gguf-pipeline models lists the aliases",
    )
