"""Strict reading of the tokenizer's JSON and text files: limits, no repeated keys, valid UTF-8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.errors import FormatError

# The largest tokenizer.json of the known models is about 40 MB.
MAX_JSON_BYTES = 256 << 20
MAX_TEXT_BYTES = 4 << 20
MAX_DEPTH = 64

T = TypeVar("T")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most *limit* bytes.

    Raises:
        FormatError: if it cannot be read, or is larger.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > limit:
            raise FormatError("file is too large", where=path, expected=f"at most {limit} bytes", found=n_bytes)
        return path.read_bytes()
    except OSError as error:
        raise FormatError("file cannot be read", where=path, found=error.strerror) from error


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a whole UTF-8 file of at most *limit* bytes.

    Raises:
        FormatError: if it cannot be read, is larger, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("file is not UTF-8", where=path, found=f"byte {error.start}: {error.reason}") from error


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file of at most *limit* bytes, whose top level is an object.

    Raises:
        FormatError: if it is not JSON, names a key twice, nests deeper than MAX_DEPTH, or holds no object.
    """
    text = read_text(path, limit)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError("file is not valid JSON", where=path, found=error or type(error).__name__) from error
    check_depth(value, path)
    return expect(value, dict, path, "the file")


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object as `read_object` does; a file that does not exist is an empty one."""
    return read_object(path) if path.is_file() else {}


def expect(value: object, kind: type[T], path: Path, place: str) -> T:
    """Return *value* if it is a *kind* (bool is no int), else say where in the file it is not.

    Raises:
        FormatError: if it has another type.
    """
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise FormatError(
        f"{place} has the wrong type",
        where=path,
        expected=kind.__name__,
        found=f"{type(value).__name__} {short(value)}",
    )


def optional(parent: dict[str, Any], key: str, kind: type[T], path: Path, place: str) -> T | None:
    """Return parent[key] as a *kind*; a missing key and null are None."""
    value = parent.get(key)
    return None if value is None else expect(value, kind, path, f"{place}.{key}" if place else key)


def check_depth(value: object, path: Path) -> None:
    """Refuse objects and lists that nest deeper than MAX_DEPTH.

    Raises:
        FormatError: if they do.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise FormatError("JSON nests too deep", where=path, expected=f"at most {MAX_DEPTH} levels")


def short(value: object) -> str:
    """Show a value in at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _children(value: object) -> list[object]:
    children: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {short(twice)} is there twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
