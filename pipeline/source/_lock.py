"""What each model was when it was last resolved: models.lock.json in the user's data folder.

models.toml names repositories and branches; which commit a branch was, and which files with which hashes that commit
needs, stands here, so that a model stays the same until `pull` asks for it again.  An entry is used only while the
repository and the branch are the ones it was made for.

    {"version": 1,
     "models": {"qwen": {"repository": "Qwen/...", "revision": "main", "commit": "<40 hex>", "time": "<ISO 8601, UTC>",
                         "files": {"config.json": {"size": 659, "etag": "<git blob id, or sha256>"}, ...}}}}
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import data, whole
from pipeline.errors import UsageError
from pipeline.source._cache import COMMIT
from pipeline.source._manifest import Manifest, RemoteFile

_VERSION = 1
_MAX_BYTES = 100_000_000


def path() -> Path:
    """Return where the lock file lies, whether or not it exists."""
    return data.data_home() / "models.lock.json"


def read(name: str, repository: str, revision: str) -> Manifest | None:
    """Return what the model *name* was resolved to, if it was by this *repository* and *revision*.

    Raises:
        UsageError: if the lock file is damaged.
    """
    row = _load().get(name)
    if row is None:
        return None
    try:
        files = tuple(RemoteFile(n, _size(f["size"]), _text(f["etag"])) for n, f in row["files"].items())
        found = Manifest(row["repository"], row["revision"], row["commit"], files)
        datetime.fromisoformat(row["time"])
        is_whole = bool(COMMIT.fullmatch(found.commit)) and all(_is_name(f.name) for f in files)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise _damaged(f"[{name}]: {type(error).__name__} {error}") from error
    if not is_whole:
        raise _damaged(f"[{name}]")
    return found if (found.repository, found.revision) == (repository, revision) else None


def write(name: str, manifest: Manifest, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Write down that the model *name* is *manifest*, whole or not at all, beside what other processes write.

    Raises:
        UsageError: if the lock file is damaged.
        OSError: if the folder cannot be written.
    """
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        models = _load()
        models[name] = {
            "repository": manifest.repository,
            "revision": manifest.revision,
            "commit": manifest.commit,
            "time": now().isoformat(timespec="seconds"),
            "files": {f.name: {"size": f.size, "etag": f.etag} for f in manifest.files},
        }
        text = json.dumps({"version": _VERSION, "models": dict(sorted(models.items()))}, indent=2, ensure_ascii=False)
        whole.write_text(target, text + "\n")


def _load() -> dict[str, Any]:
    try:
        with path().open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        whole = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error
    models = whole.get("models") if isinstance(whole, dict) and whole.get("version") == _VERSION else None
    if not isinstance(models, dict):
        raise _damaged("something else")
    return models


def _damaged(found: str) -> UsageError:
    return UsageError(
        "the lock file cannot be read",
        where=path(),
        expected=f"JSON, version {_VERSION}",
        found=found[:300],
        hint="take the file away: `pull` makes it again",
    )


def _size(value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"{value!r} is no size")
    return value


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _is_name(name: str) -> bool:
    """Say whether *name* is a path that stays in its folder."""
    return not name.startswith("/") and ".." not in name.split("/") and name.isprintable()
