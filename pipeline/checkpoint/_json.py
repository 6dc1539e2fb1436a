"""JSON from people one does not know (RFC 8259): no duplicate keys, bounded size, depth and number of values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError

_MAX_DEPTH = 64
_MAX_VALUES = 2_000_000  # each is a Python object of 30 to 100 bytes, so evil input stays below some hundred MB
_MAX_DIGITS = 400  # a float64 in full has 309 digits before its point; converting an integer costs digits squared
_HINT = "download the file again, or ask who made it"


class _RefusedError(ValueError):
    """A rule of ours that is broken while the parser runs."""


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON object from *path*, a file of at most *limit* bytes.

    NaN and Infinity are taken: Python writes them, and some published config.json have them.

    Raises:
        FormatError: if it cannot be read, is too big, or is not one strict JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise FormatError("cannot be read", where=path, found=e.strerror or e, hint="check the folder") from e
    if len(data) > limit:
        raise FormatError("is too big", where=path, expected=f"at most {limit:,} bytes", hint=_HINT)
    return parse_object(data, where=path, constants=True)


def parse_object(data: bytes, *, where: object, constants: bool = False) -> dict[str, Any]:
    """Parse *data*, UTF-8 without a byte order mark, as one JSON object.

    Args:
        data: the text.
        where: what the text is part of, for messages.
        constants: whether NaN, Infinity and -Infinity, which JSON does not know, are numbers.

    Raises:
        FormatError: if it is anything else, or exceeds the limits on depth, values or digits.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError(
            "is not UTF-8", where=where, found=f"byte 0x{data[e.start]:02x} at {e.start}", hint=_HINT
        ) from e
    # Every value but the first follows one of these, so their count bounds the memory before it is spent.
    n_values = sum(text.count(mark) for mark in ",[{:")
    if n_values > _MAX_VALUES:
        raise FormatError(
            "has too many values", where=where, expected=f"at most {_MAX_VALUES:,}", found=f"{n_values:,}"
        )
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_number(int),
            parse_float=_number(float),
            parse_constant=None if constants else _no_constant,
        )
    except json.JSONDecodeError as e:
        raise FormatError("is not JSON", where=where, found=f"{e.msg} at character {e.pos}", hint=_HINT) from e
    except _RefusedError as e:
        raise FormatError(str(e), where=where, hint=_HINT) from e
    except RecursionError as e:
        raise FormatError("is nested too deep", where=where, expected=f"at most {_MAX_DEPTH} levels") from e
    if not isinstance(value, dict):
        raise FormatError("is not an object", where=where, expected="{...}", found=json_type(value), hint=_HINT)
    _check_depth(value, where)
    return value


def json_type(value: object) -> str:
    """Name the JSON type of *value*, with an article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"has the key {shorten(key)} twice")
            seen.add(key)
    return value


def _number(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if len(text) > _MAX_DIGITS:
            raise _RefusedError(f"has a number of {len(text):,} characters")
        return convert(text)

    return parse


def _no_constant(name: str) -> Any:
    raise _RefusedError(f"has {name}, which is not JSON")


def _check_depth(value: object, where: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[object] = []
        for v in level:
            if isinstance(v, dict):
                inner.extend(x for x in v.values() if isinstance(x, dict | list))
            elif isinstance(v, list):
                inner.extend(x for x in v if isinstance(x, dict | list))
        if not inner:
            return
        level = inner
    raise FormatError("is nested too deep", where=where, expected=f"at most {_MAX_DEPTH} levels", hint=_HINT)


def shorten(text: str, limit: int = 80) -> str:
    """Quote *text* for a message: escaped, and never longer than some *limit* characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"
