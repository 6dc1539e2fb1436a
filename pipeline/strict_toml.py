"""TOML files that people write: bounded, and refused in our words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError


def read_toml(path: Path, limit: int, hint: str | None = None) -> dict[str, Any]:
    """Read a TOML file of at most *limit* bytes; *hint* is the next step where it is not TOML.

    Raises:
        UsageError: if it cannot be read, is larger, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(limit + 1)
        if len(text) > limit:
            raise UsageError("is too big", where=path, expected=f"at most {limit:,} bytes")
        return tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise UsageError("cannot be read", where=path, found=error.strerror or error) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError("is not TOML", where=path, found=error, hint=hint) from error
