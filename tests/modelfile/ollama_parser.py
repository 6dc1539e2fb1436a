"""A model of Ollama's Modelfile parser, written from how parser/parser.go of v0.34.4 behaves.

It knows nothing of how this package writes a Modelfile: it reads one character after the other, as that parser does.
"""

from __future__ import annotations

_COMMANDS = {"from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message"}
_COMMANDS |= {"requires"}
_ROLES = {"system", "user", "assistant"}
_BLANK = " \t"
_BREAK = "\r\n"


class BadModelfileError(Exception):
    """Ollama refuses this text."""


def parse(text: str) -> list[tuple[str, str]]:
    """Return the commands in order, as (name, argument); a parameter has its own name, FROM is "model"."""
    commands: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] == "#":
            while at < len(text) and text[at] not in _BREAK:
                at += 1
        elif text[at] in _BLANK + _BREAK:
            at += 1
        else:
            name, at = _word(text, at if text[at].isprintable() else at + 1, extra="")
            if name.lower() not in _COMMANDS:
                raise BadModelfileError(f"no command: {name}")
            command, at = _command(text, at, name.lower())
            commands.append(command)
    if not any(name == "model" for name, _ in commands):
        raise BadModelfileError("no FROM line")
    return commands


def _command(text: str, at: int, name: str) -> tuple[tuple[str, str], int]:
    if name == "parameter":
        name, at = _word(text, at, extra="0123456789_")
        value, at = _value(text, at)
    elif name == "message":
        role, at = _word(text, at, extra="")
        if role not in _ROLES:
            raise BadModelfileError(f"no role: {role}")
        value, at = _value(text, at)
        value = f"{role}: {value}"
    else:
        value, at = _value(text, at)
        name = "model" if name == "from" else name
    return (name, value), at


def _word(text: str, at: int, extra: str) -> tuple[str, int]:
    """Read a word of ASCII letters (and *extra*), which a blank must end; the blank is eaten."""
    start = at
    while at < len(text) and ((text[at].isascii() and text[at].isalpha()) or text[at] in extra):
        at += 1
    if at == len(text) or text[at] not in _BLANK:
        raise BadModelfileError(f"unexpected end of a word: {text[start : at + 1]!r}")
    return text[start:at], at + 1


def _value(text: str, at: int) -> tuple[str, int]:
    """Read a value: at each line break, and at the end of the file, it is over if its quotes are closed."""
    kept: list[str] = []
    while at < len(text):
        character = text[at]
        at += 1
        if character in _BREAK:
            value = _unquoted("".join(kept))
            if value is not None:
                return value, at
            kept.append(character)
        elif character in _BLANK or character.isprintable():
            kept.append(character)
    value = _unquoted("".join(kept))
    if value is None:
        raise BadModelfileError("quotes are not closed")
    return value, at


def _unquoted(text: str) -> str | None:
    text = text.strip()
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            n = len(quotes)
            return text[n:-n] if len(text) >= 2 * n and text.endswith(quotes) else None
    return text


def params(commands: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Collect the values of each parameter, in order."""
    found: dict[str, list[str]] = {}
    for name, value in commands:
        if name not in _COMMANDS | {"model"}:
            found.setdefault(name, []).append(value)
    return found
