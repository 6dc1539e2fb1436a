"""Chat families: one file templates/chat/<name>.j2 each.

A file starts with a Jinja comment that holds TOML.  Where a Go template can say what the checkpoint's own says, it
follows in a raw block:

    {#
    name = "chatml"                             # the file's own name
    match = ["<|im_start|>", "<|im_end|>"]      # all must stand in the checkpoint's chat template
    stops = ["<|im_start|>", "<|im_end|>"]      # texts at which a turn ends
    [sampling]                                  # optional: PARAMETER defaults of the family
    temperature = 0.7
    #}
    {%- raw -%}{{ range .Messages }} ... {%- endraw -%}
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from pipeline import data
from pipeline.errors import FormatError
from pipeline.modelfile import _parameters

_FILE = re.compile(r"\{#\n(?P<header>.*?)#\}(?P<body>.*)", re.DOTALL)
_KEYS = {"name", "match", "stops", "sampling"}


@dataclass(frozen=True)
class Family:
    """Checkpoints whose chat templates are alike.

    *match* are literal texts, all of which stand in such a template; *stops* end a turn; *sampling* are defaults below
    generation_config.json; *template* is the Go template for Ollama, None where only the checkpoint's own will do.
    """

    name: str
    match: tuple[str, ...]
    stops: tuple[str, ...]
    template: str | None
    path: Path
    sampling: tuple[tuple[str, int | float | bool | str], ...] = field(default=())


def families(extra_dir: Path | None = None) -> dict[str, Family]:
    """Read all chat families, the shipped ones and those in *extra_dir*/chat; a name found there wins.

    Raises:
        FormatError: if a file is not what this module's description says.
    """
    folders = [data.path("templates") / "chat"]
    if extra_dir is not None:
        folders.append(extra_dir / "chat")
    return {path.stem: _read(path) for folder in folders for path in sorted(folder.glob("*.j2"))}


def match_family(chat_template: str | None, families: Mapping[str, Family]) -> Family | None:
    """Find the family of a checkpoint's chat template; of several, the one with most markers.

    Where two of the shipped ones have equally many, the template is of none.

    Raises:
        FormatError: if a family of the user's own matches with as many markers as another.
    """
    if chat_template is None:
        return None
    found = [f for f in families.values() if all(marker in chat_template for marker in f.match)]
    if not found:
        return None
    most = max(len(f.match) for f in found)
    first, *others = [f for f in found if len(f.match) == most]
    shipped = data.path("templates")
    if others and all(f.path.is_relative_to(shipped) for f in (first, *others)):
        return None
    if others:
        raise FormatError(
            "two chat families fit this checkpoint equally well",
            where=first.path,
            found=others[0].path,
            hint="give one of them a marker more",
        )
    return first


def _read(path: Path) -> Family:
    try:
        parts = _FILE.fullmatch(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as exc:
        raise FormatError("a chat family is UTF-8 text", where=path, found=str(exc)) from exc
    if parts is None:
        raise FormatError("a chat family starts with its own description", where=path, expected="{#, TOML, #}")
    header = _header(path, parts["header"])
    return Family(
        name=header["name"],
        match=_texts(path, header, "match"),
        stops=_texts(path, header, "stops"),
        template=_body(path, parts["body"]),
        path=path,
        sampling=_sampling(path, header.get("sampling", {})),
    )


def _header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise FormatError("a chat family's description is not TOML", where=path, found=str(exc)) from exc
    unknown = sorted(set(header) - _KEYS)
    if unknown:
        raise FormatError(
            "a chat family's description has an unknown key", where=path, expected=sorted(_KEYS), found=unknown[0]
        )
    if header.get("name") != path.stem:
        raise FormatError(
            "a chat family has the name of its file", where=path, expected=path.stem, found=header.get("name")
        )
    return header


def _texts(path: Path, header: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = header.get(key)
    good = isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)
    if not isinstance(texts, list) or not good or (key == "match" and not texts) or len(set(texts)) != len(texts):
        raise FormatError(f"a chat family's {key!r} is a list of different texts", where=path, found=repr(texts))
    return tuple(texts)


def _sampling(path: Path, table: Any) -> tuple[tuple[str, int | float | bool | str], ...]:
    if not isinstance(table, dict) or "stop" in table:
        raise FormatError(
            "a chat family's 'sampling' is a table of parameters other than stop", where=path, found=table
        )
    return tuple(_parameters.checked(k, v, where=str(path), error=FormatError) for k, v in table.items())


def _body(path: Path, text: str) -> str | None:
    try:
        body = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(text).render()  # noqa: S701
    except jinja2.TemplateError as exc:
        raise FormatError(
            "a chat family's Go template is no plain text to Jinja",
            where=path,
            found=str(exc),
            hint="wrap it in {%- raw -%} and {%- endraw -%}",
        ) from exc
    return body if body.strip() else None
