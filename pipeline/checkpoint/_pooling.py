"""How an embedding model makes one vector of a text, as sentence-transformers writes it beside the weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import has_file, json_type, read_bytes, read_json

_MAX_BYTES = 1_000_000
_MODULES = "modules.json"
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NEW_MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# Normalize is what Ollama does anyway; other modules, such as Dense, change the vector in ways the engine does not do.
_KNOWN = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> str | None:
    """Return "mean", "cls" or "last"; None where the checkpoint says nothing.

    Raises:
        FormatError: if a file is not what it claims.
        UnsupportedError: if it is another kind of pooling, or not the last thing done.
    """
    path = folder / _MODULES
    modules = _modules(path)
    names = [_type(m) for m in modules]
    unknown = [name for name in names if name not in _KNOWN]
    if unknown:
        raise UnsupportedError(
            "the embedding passes through a module that llama.cpp does not have",
            where=path,
            expected=", ".join(_KNOWN),
            found=", ".join(unknown)[:80],
        )
    if "Pooling" not in names:
        return None
    place = modules[names.index("Pooling")].get("path")
    if not isinstance(place, str) or not re.fullmatch(r"\w[\w.-]{0,60}", place):
        raise FormatError("does not tell where the pooling is", where=path, expected="a folder name", found=repr(place))
    return _mode(folder / place / "config.json")


def module_names(folder: Path) -> list[str] | None:
    """Return the kinds of modules in their order, such as "Pooling"; None where there is no modules.json.

    Raises:
        FormatError: if the file is not what it claims.
    """
    path = folder / _MODULES
    return [_type(module) for module in _modules(path)] if has_file(path) else None


def _type(module: dict[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _modules(path: Path) -> list[dict[str, Any]]:
    """Read the list of modules; none where there is no file."""
    if not has_file(path):
        return []
    data = read_bytes(path, _MAX_BYTES)
    try:
        modules = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("is not JSON", where=path, found=error) from error
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise FormatError("does not list modules", where=path, expected="a list of objects", found=json_type(modules))
    return modules


def _mode(path: Path) -> str:
    if not path.exists():
        raise FormatError("is missing", where=path, hint="download the repository again, with its folders")
    config: dict[str, Any] = read_json(path, _MAX_BYTES)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    known = [_MODES[key] for key in chosen if key in _MODES]
    if not chosen and config.get("pooling_mode") in _NEW_MODES:
        return _NEW_MODES[config["pooling_mode"]]
    if len(known) != 1 or len(chosen) != 1:
        raise UnsupportedError(
            "llama.cpp does not have this kind of pooling",
            where=path,
            expected="one of mean, cls and lasttoken",
            found=", ".join(chosen) or repr(config.get("pooling_mode"))[:80],
        )
    return known[0]
