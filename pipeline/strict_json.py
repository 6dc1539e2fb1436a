"""JSON and text from people one does not know: no duplicate keys, bounded size, depth and number of values.

One rule for NaN and Infinity, which JSON (RFC 8259) does not know: files that Python writes and reads may have them, as
some published config.json do, and whoever needs a number refuses them by the key; what Rust reads (tokenizer.json,
vocab.json, the header of safetensors) may not.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import FormatError

# The largest tokenizer.json of the known models is about 40 MB, with some 3 million values.
MAX_JSON_BYTES = 256 << 20
MAX_TEXT_BYTES = 4 << 20
MAX_DEPTH = 64
_MAX_VALUES = 2_000_000  # each is a Python object of 30 to 100 bytes, so evil input stays below some hundred MB
_MAX_VALUES_OF_VOCABULARY = 12_000_000
_MAX_DIGITS = 400  # a float64 in full has 309 digits before its point; converting an integer costs digits squared
_HINT = "download the file again, or ask who made it"

T = TypeVar("T")


class _RefusedError(ValueError):
    """A rule of ours that is broken while the parser runs."""


def has_file(path: Path) -> bool:
    """Say whether there is a file at *path*.  What is there and is none is refused: its content was meant to count.

    Raises:
        FormatError: for a broken link, a folder, a pipe, a device.
    """
    if path.is_file():
        return True
    if os.path.lexists(path):
        raise _not_a_file(path)
    return False


def _not_a_file(path: Path) -> FormatError:
    found = "a link to nothing" if path.is_symlink() and not path.exists() else "a folder, a pipe or a device"
    return FormatError("is not a file", where=path, expected="a file", found=found, hint=_HINT)


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most *limit* bytes.

    Raises:
        FormatError: if it cannot be read, or is larger.
    """
    try:
        # A named pipe must not block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file(path)
            # The size first, so that nothing is allocated for a huge file; it may still grow.
            n_bytes = status.st_size
            data = file.read(limit + 1) if n_bytes <= limit else b""
    except OSError as e:
        raise FormatError("cannot be read", where=path, found=e.strerror or e, hint="check the folder") from e
    if max(n_bytes, len(data)) > limit:
        raise FormatError(
            "is too large", where=path, expected=f"at most {limit:,} bytes", found=f"{n_bytes:,}", hint=_HINT
        )
    return data


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a whole UTF-8 file of at most *limit* bytes.

    Raises:
        FormatError: if it cannot be read, is larger, or is not UTF-8.
    """
    return _decoded(read_bytes(path, limit), path)


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object that Python wrote from *path*, a file of at most *limit* bytes; it may have NaN and Infinity.

    Raises:
        FormatError: if it cannot be read, is too large, or is not one strict JSON object.
    """
    return parse_object(read_bytes(path, limit), where=path, constants=True)


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object as `read_json` does; a file that does not exist is an empty one."""
    return read_json(path) if has_file(path) else {}


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most *limit* bytes that may be a whole vocabulary; NaN and Infinity are refused.

    Raises:
        FormatError: if it cannot be read, is too large, or is not one strict JSON object.
    """
    return parse_object(read_bytes(path, limit), where=path, max_values=_MAX_VALUES_OF_VOCABULARY)


def read_list(path: Path, limit: int = MAX_JSON_BYTES) -> list[Any]:
    """Read a JSON array of at most *limit* bytes; NaN and Infinity are refused.

    Raises:
        FormatError: if it cannot be read, is too large, or is not one strict JSON array.
    """
    value = _parse(read_bytes(path, limit), where=path)
    if not isinstance(value, list):
        raise FormatError("is not an array", where=path, expected="[...]", found=json_type(value), hint=_HINT)
    return value


def parse_object(
    data: bytes, *, where: object, constants: bool = False, max_values: int = _MAX_VALUES
) -> dict[str, Any]:
    """Parse *data*, UTF-8 without a byte order mark, as one JSON object.

    Args:
        data: the text.
        where: what the text is part of, for messages.
        constants: whether NaN, Infinity and -Infinity are numbers.
        max_values: how many values it may have.

    Raises:
        FormatError: if it is anything else, or exceeds the limits on depth, values or digits.
    """
    value = _parse(data, where=where, constants=constants, max_values=max_values)
    if not isinstance(value, dict):
        raise FormatError("is not an object", where=where, expected="{...}", found=json_type(value), hint=_HINT)
    return value


def _parse(data: bytes, *, where: object, constants: bool = False, max_values: int = _MAX_VALUES) -> object:
    text = _decoded(data, where)
    # Every value but the first follows one of these, so their count bounds the memory before it is spent.
    n_values = sum(text.count(mark) for mark in ",[{:")
    if n_values > max_values:
        raise FormatError("has too many values", where=where, expected=f"at most {max_values:,}", found=f"{n_values:,}")
    try:
        value: object = json.loads(
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
        raise FormatError("is nested too deep", where=where, expected=f"at most {MAX_DEPTH} levels") from e
    check_depth(value, where)
    return value


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


def check_depth(value: object, where: object) -> None:
    """Refuse objects and lists that nest deeper than MAX_DEPTH.

    Raises:
        FormatError: if they do.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise FormatError("is nested too deep", where=where, expected=f"at most {MAX_DEPTH} levels", hint=_HINT)


def json_type(value: object) -> str:
    """Name the JSON type of *value*, with an article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shorten(text: str, limit: int = 80) -> str:
    """Quote *text* for a message: escaped, and never longer than some *limit* characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"


def short(value: object) -> str:
    """Show a value in at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _decoded(data: bytes, where: object) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError(
            "is not UTF-8", where=where, found=f"byte 0x{data[e.start]:02x} at {e.start}", hint=_HINT
        ) from e


def _children(value: object) -> list[object]:
    children: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


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
