"""Find a model and bring it onto this machine.

MODEL is, in this order of precedence:

1. a path, written as one (`./x`, `../x`, `/x`, `~/x`): that folder, or that GGUF file; `x.gguf` too if it is there;
2. an existing folder with a config.json in it, even if an alias has the same name (a note says so);
3. an alias of models.toml, optionally `alias@revision`;
4. `org/name[@revision]`, a repository of the Hugging Face Hub (or of HF_ENDPOINT).

Without a revision an alias or a repository is the commit that was recorded when it was last resolved (models.lock.json
in the user's data folder); `update` asks the Hub again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import data
from pipeline.errors import InputError, UsageError
from pipeline.patience import Patience
from pipeline.source import aliases, hub
from pipeline.source.folder import open_folder
from pipeline.source.ggufs import SUFFIX, open_gguf
from pipeline.source.opened import Log, OpenSource, Options, Progress, Weights, silent
from pipeline.types import Source

__all__ = ["Log", "OpenSource", "Options", "Patience", "Progress", "Weights", "aliases", "open_source", "resolve"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@contextmanager
def open_source(
    model: str,
    *,
    revision: str | None = None,
    weights: Weights = "all",
    update: bool = False,
    rehash: bool = False,
    log: Log = silent,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Iterator[OpenSource]:
    """Find *model* and open it; downloads that are under way stop when the block ends.

    Args:
        model: a path, an alias, or `org/name`; the last two may end in `@revision`.
        revision: a branch, tag or commit of the repository.
        weights: "all" downloads the weights first, "stream" in the background while the block runs (from the
            first `prefer` or `wait` on), "none" fetches only their headers.  What is in the cache is used in any case.
        update: ask the Hub what the branch is now, instead of taking the commit that was recorded.
        rehash: hash the files that are in the cache already; without it their size must do.
        log: takes one line of text for what a person should know.
        progress: takes (file, bytes done, bytes in all) while files come from the Hub; the numbers are of all files
            together, and the calls come from any thread, one at a time.
        patience: how often and how long to try again.

    Raises:
        UsageError: if *model* names nothing, or a revision is given for a folder or a file.
        InputError: if what it names is neither a checkpoint nor a GGUF.
        AccessError: if the repository cannot be reached or refuses.
        ResourceError: if the disk is too small.
    """
    if model.lower().endswith(SUFFIX) and (_is_path(model) or Path(model).is_file()):
        _no_revision(model, revision)
        yield OpenSource(open_gguf(data.user_path(model)))
        return
    options = Options(weights, update, rehash, log, progress, patience or Patience())
    name, at, tail = model.partition("@")
    if not name or (at and not tail):
        raise UsageError("is no model", where=repr(model), expected="an alias, org/name[@revision], or a folder")
    if _is_path(model) or (Path(model) / "config.json").exists():
        yield OpenSource(_folder(model, revision, log))
        return
    if tail and revision not in (None, tail):
        raise UsageError("has two revisions", where=model, found=f"{tail} and {revision}", hint="keep one of them")
    with _open_named(name, tail or revision, options) as opened:
        yield opened


def resolve(
    model: str,
    *,
    revision: str | None = None,
    update: bool = False,
    rehash: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Source:
    """Find *model* and make sure that all its files are on this machine; arguments and errors as for `open_source`."""
    with open_source(
        model, revision=revision, update=update, rehash=rehash, log=log or silent, progress=progress
    ) as opened:
        return opened.source


def _is_path(model: str) -> bool:
    return model in (".", "..", "~") or model.startswith(("./", "../", "/", "~/"))


def _folder(model: str, revision: str | None, log: Log) -> Source:
    _no_revision(model, revision)
    if not _is_path(model) and model in aliases.load():
        log(f"{model} is the folder here, not the alias of that name")
    return open_folder(data.user_path(model))


def _no_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError("a folder or a file has no revisions", where=model, found=revision, hint="leave it out")


@contextmanager
def _open_named(name: str, revision: str | None, options: Options) -> Iterator[OpenSource]:
    """Open an alias or a repository."""
    row = aliases.load().get(name)
    if row is None:
        if not _REPOSITORY.fullmatch(name):
            raise _unknown(name)
        with hub.open_repository(name, revision, options, name=name) as opened:
            yield opened
    elif row.repo is not None:
        with hub.open_repository(row.repo, revision, options, name=name, branch=row.branch) as opened:
            yield replace(opened, source=replace(opened.source, name=name, alias=name, family=row.family))
    else:
        if revision is not None:
            raise UsageError("this alias is a folder, which has no revisions", where=name, found=revision)
        assert row.folder is not None  # noqa: S101  a row has one of the two
        yield OpenSource(Source(name, open_folder(row.folder).folder, alias=name, family=row.family))


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
