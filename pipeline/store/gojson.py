"""JSON in the very bytes of Go's encoding/json, so that our blobs get the digests of Ollama's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import FormatError

# Go escapes these for HTML's and JavaScript's sake; every other character stays as UTF-8.
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def encode(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encode as json.Marshal does: compact, and with *sort_keys* (Go's maps) or in the order given (Go's structs).

    json.Encoder writes the same and a newline after it.

    Raises:
        FormatError: if *value* has a part that JSON or UTF-8 can not hold.
    """
    try:
        return _text(value, sort_keys).encode()
    except UnicodeEncodeError as exc:
        raise FormatError("text is not valid Unicode", found=ascii(exc.object[exc.start : exc.end])) from exc


def _text(value: Any, sort_keys: bool) -> str:
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(_GO_ESCAPES)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        keys = sorted(value) if sort_keys else list(value)
        return "{" + ",".join(f"{_text(k, sort_keys)}:{_text(value[k], sort_keys)}" for k in keys) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(_text(item, sort_keys) for item in value) + "]"
    raise FormatError("JSON has no such type", found=type(value).__name__)


def _float(value: float) -> str:
    """Write a float64 as encode.go's floatEncoder: shortest form, plain from 1e-6 up to 1e21, else with an exponent."""
    if not math.isfinite(value):
        raise FormatError("JSON has no such number", found=value)
    sign, digits, exponent = _shortest(value)
    point = len(digits) + exponent
    if value != 0 and not 1e-6 <= abs(value) < 1e21:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{fraction}e{'-' if point < 1 else '+'}{abs(point - 1)}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if exponent >= 0:
        return f"{sign}{digits}{'0' * exponent}"
    return f"{sign}{digits[:point]}.{digits[point:]}"


def _shortest(value: float) -> tuple[str, str, int]:
    """Split into sign, shortest decimal digits and power of ten: value = sign digits * 10**exponent."""
    mantissa, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = int(power or 0) - len(fraction)
    short = digits.rstrip("0")
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    return (sign, short, exponent + len(digits) - len(short)) if short else (sign, "0", 0)
