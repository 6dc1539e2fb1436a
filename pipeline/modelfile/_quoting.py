"""Write a text so that Ollama's Modelfile parser reads back exactly this text.

The parser (parser/parser.go) knows no escapes.  It collects a value rune by rune, dropping every rune that is not
printable (Go's strconv.IsPrint), except blanks, tabs and line breaks; at each line break it strips white space around
what it has, and ends the value there if that is unquoted, or starts and ends with the same quotes, single or triple.
"""

from __future__ import annotations

import re

from pipeline.errors import InputError

_TRIPLE = '"""'
_LINE_ENDS_TRIPLE = re.compile(r'"""[ \t]*[\r\n]')
_LINE_BREAK = re.compile(r"[\r\n]")
_WORD = re.compile(r'[^"\s][^\s]*')


def quoted(text: str, where: str) -> str:
    """Return *text* as it stands in a Modelfile; *where* names its command ("SYSTEM").

    Raises:
        InputError: if no Modelfile can say this text.
    """
    _refuse_dropped_characters(text, where)
    if _WORD.fullmatch(text):
        return text
    # Two quotes at the start (or one that is all) would make a single quote a triple one.
    if not _LINE_BREAK.search(text) and text != '"' and not text.startswith('""'):
        return f'"{text}"'
    if not _LINE_ENDS_TRIPLE.search(text):
        return f"{_TRIPLE}{text}{_TRIPLE}"
    raise InputError(
        "a Modelfile cannot hold this text: one of its lines ends with three double quotes",
        where=where,
        found=repr(_line_around(text, _LINE_ENDS_TRIPLE)),
        hint="change that line; only the Modelfile is concerned, a published model carries any text",
    )


def _refuse_dropped_characters(text: str, where: str) -> None:
    for position, character in enumerate(text):
        if not character.isprintable() and character not in "\t\n\r":
            raise InputError(
                "a Modelfile cannot hold this text: Ollama's parser drops one of its characters",
                where=where,
                expected="printable characters, blanks, tabs and line breaks",
                found=f"U+{ord(character):04X} at character {position}",
                hint="replace it; only the Modelfile is concerned, a published model carries any text",
            )


def _line_around(text: str, pattern: re.Pattern[str]) -> str:
    found = pattern.search(text)
    end = found.start() + len(_TRIPLE) if found else len(text)
    return text[:end].splitlines()[-1][-60:]
