"""What the user says about a Modelfile: on the command line, or in the `modelfile` table of a row of models.toml.

[qwen.modelfile]
system = "You answer in one sentence."
parameters = { temperature = 0.6, num_ctx = 8192, stop = ["<|im_end|>"] }
messages = [{ role = "user", content = "Hi" }, { role = "assistant", content = "Hello." }]
licenses = ["LICENSE.txt"]      # files, relative to this models.toml; they replace the checkpoint's
template = "qwen.tmpl"          # a file with a Go template
renderer = "qwen3-coder"        # code that Ollama brings, in place of a template
parser = "qwen3-coder"
requires = "0.34.0"             # the oldest Ollama that shall run it
fim = true                      # offer `insert`: the model was trained to fill in the middle
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.errors import UsageError
from pipeline.modelfile import _engine, _go_template, _parameters
from pipeline.modelfile._parameters import Parameter

_ROLES = ("system", "user", "assistant")
_MAX_FILE = 1_000_000


@dataclass(frozen=True)
class Overrides:
    """What the user says; it wins over the checkpoint and the family.

    A name in *parameters* replaces all found rows of that name (stops too); *num_ctx* is in tokens; *messages* are
    (role, content) that every conversation starts with.  *licenses* are texts that replace the checkpoint's, where they
    are not None.  *template* is a Go template; *fim* says whether the model fills in the middle, None that it is to be
    found out.
    """

    parameters: tuple[Parameter, ...] = ()
    num_ctx: int | None = None
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] | None = None
    template: str | None = None
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    fim: bool | None = None

    def over(self, other: Overrides) -> Overrides:
        """Return *other* with everything replaced that is said here; parameters are replaced name by name."""
        said = {name: value for name, value in vars(self).items() if value not in (None, ())}
        mine = {name for name, _ in self.parameters} | ({"num_ctx"} if self.num_ctx is not None else set())
        kept = tuple(row for row in other.parameters if row[0] not in mine)
        return replace(other, **(said | {"parameters": (*kept, *self.parameters)}))

    def rows(self) -> tuple[Parameter, ...]:
        """Return the parameters, *num_ctx* among them, each with a value of its own type.

        Raises:
            UsageError: if Ollama takes no such parameter or value, or one is given twice.
        """
        pairs = [*self.parameters, *([] if self.num_ctx is None else [("num_ctx", self.num_ctx)])]
        rows = [_parameters.checked(name, value, where="parameter") for name, value in pairs]
        names = [name for name, _ in rows if name != "stop"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageError(f"parameter {twice!r} is given twice")
        if any(name == "num_ctx" and int(value) <= 0 for name, value in rows):
            raise UsageError("num_ctx is a number of tokens", expected="1 or more")
        return tuple(rows)

    def check(self) -> None:
        """Refuse what Ollama would not take, or would store and then fail with.

        Raises:
            UsageError: naming what.
            InputError: if the template is broken.
        """
        self.rows()
        for role, _ in self.messages:
            if role not in _ROLES:
                raise UsageError("a message has an unknown role", expected=", ".join(_ROLES), found=repr(role)[:80])
        if self.renderer:
            _engine.known("renderer", self.renderer, _engine.RENDERERS)
        if self.parser:
            _engine.known("parser", self.parser, _engine.PARSERS)
        if self.requires:
            _engine.version(self.requires)
        if self.template is not None:
            _go_template.check(self.template, "template")
        texts = [self.system, self.template, *(self.licenses or ()), *(content for _, content in self.messages)]
        for text in (*texts, *(value for _, value in self.parameters)):
            _require_unicode(text)


def read_table(table: Mapping[str, Any], where: str, folder: Path) -> Overrides:
    """Read the `modelfile` table of an alias; *where* names it in errors, files in it are relative to *folder*.

    Raises:
        UsageError: if a key is unknown, a value of another type, a file missing, or it is nothing that Ollama takes.
    """
    said: dict[str, Any] = {}
    for key, value in table.items():
        reader = _READERS.get(key)
        if reader is None:
            near = difflib.get_close_matches(key, _READERS, n=1, cutoff=0.5)
            raise UsageError(
                f"has the unknown key {key!r}",
                where=where,
                expected=", ".join(_READERS),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        said[key] = reader(value, f"{where}, {key}", folder)
    overrides = Overrides(**said)
    try:
        overrides.check()
    except UsageError as e:
        raise UsageError(
            e.what, where=f"{where}, {e.where}" if e.where else where, expected=e.expected, found=e.found, hint=e.hint
        ) from e
    return overrides


def read_text_file(path: Path, where: object) -> str:
    """Read a text that the user named: a licence or a template, in UTF-8, at most 1 MB; line breaks stay.

    Raises:
        UsageError: if it can not be read, is no such text, or is empty.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as e:
        raise UsageError("cannot be read", where=f"{where}: {path}", found=e.strerror or e) from e
    if len(data) > _MAX_FILE:
        raise UsageError("is too big", where=f"{where}: {path}", expected=f"at most {_MAX_FILE:,} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError("is not UTF-8 text", where=f"{where}: {path}", found=str(e)) from e
    if not text.strip():
        raise UsageError("is empty", where=f"{where}: {path}", hint="leave it out")
    return text


def _require_unicode(text: object) -> None:
    if isinstance(text, str):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise UsageError(
                "a text is not valid Unicode", expected="UTF-8", found=ascii(text[max(0, e.start - 20) : e.end])
            ) from e


def _text(value: Any, where: str, _folder: Path) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError("is not a text", where=where, expected="a string that is not empty", found=repr(value)[:80])
    return value


def _flag(value: Any, where: str, _folder: Path) -> bool:
    if not isinstance(value, bool):
        raise UsageError("is neither true nor false", where=where, found=repr(value)[:80])
    return value


def _file(value: Any, where: str, folder: Path) -> str:
    return read_text_file(folder / data.user_path(_text(value, where, folder)), where)


def _files(value: Any, where: str, folder: Path) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    return tuple(_file(name, where, folder) for name in names)


def _rows(value: Any, where: str, _folder: Path) -> tuple[Parameter, ...]:
    if not isinstance(value, dict):
        raise UsageError("is not a table", where=where, expected="{ temperature = 0.6 }", found=repr(value)[:80])
    pairs = []
    for name, one in value.items():
        values = one if isinstance(one, list) and name == "stop" else [one]
        pairs += [_parameters.checked(name, item, where=where) for item in values]
    return tuple(pairs)


def _messages(value: Any, where: str, folder: Path) -> tuple[tuple[str, str], ...]:
    rows: Sequence[Any] = value if isinstance(value, list) else [value]
    messages = []
    for row in rows:
        if not isinstance(row, dict) or set(row) != {"role", "content"}:
            raise UsageError(
                "is no message", where=where, expected='{ role = "user", content = "..." }', found=repr(row)[:80]
            )
        messages.append((_text(row["role"], where, folder), _text(row["content"], where, folder)))
    return tuple(messages)


_READERS: dict[str, Callable[[Any, str, Path], Any]] = {
    "system": _text,
    "parameters": _rows,
    "messages": _messages,
    "licenses": _files,
    "template": _file,
    "renderer": _text,
    "parser": _text,
    "requires": _text,
    "fim": _flag,
}
