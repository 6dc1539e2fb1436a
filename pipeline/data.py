"""The one door to shipped files: templates/, models.toml, pin.toml, models/demo, calibration/.

In a wheel they lie in `pipeline/_data/`, in a checkout at the top level.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import AccessError, PipelineError

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Return the folder that holds the shipped files."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent


def path(name: str) -> Path:
    """Return the path of a shipped file or folder, such as "templates" or "vendor/llama.cpp/pin.toml".

    Raises:
        PipelineError: if this installation lacks it.
    """
    found = root() / name
    if not found.exists():
        raise PipelineError("a file that ships with gguf-pipeline is missing", where=found, hint="install it again")
    return found


def config_home() -> Path:
    """Return the user's settings folder (XDG_CONFIG_HOME), whether or not it exists."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "gguf-pipeline"


def cache_home() -> Path:
    """Return the folder for what can be made again (XDG_CACHE_HOME): native builds, downloads, work files."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gguf-pipeline"


def data_home() -> Path:
    """Return the folder for what the user made (XDG_DATA_HOME): the embedded registry's store, reports."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "gguf-pipeline"


def user_path(text: str | Path) -> Path:
    """Return a path with the user's home in place of "~"; that of a user who is not there stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  # pathlib's own raises RuntimeError


def nearest_existing(path: Path) -> Path:
    """Return *path*, or the nearest folder above it that is there: the disk that it will lie on.

    Where we may not look, what we look for counts as being there.
    """
    return next(there for there in (path, *path.parents) if _may_be_there(there))


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True


def require_writable(folder: Path, what: str, hint: str) -> None:
    """Refuse a folder that we cannot write to, or make, before any work is done.

    Raises:
        AccessError: saying *what* is refused, and naming the folder, with *hint* as the next step.
    """
    there = nearest_existing(folder)
    is_folder = os.path.isdir(there)  # noqa: PTH112  # no error where we may not look
    if not is_folder or not os.access(there, os.W_OK | os.X_OK):
        found = "a read-only disk" if is_folder and _is_read_only(there) else None
        raise AccessError(what, where=there, found=found, hint=hint)


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
