"""The outer form of a Go template: actions that are closed, and blocks that end.

Ollama parses a TEMPLATE when it loads the model; a broken one would be noticed by whoever pulled it.  What is wrong
inside an action only Go's own parser can tell.
"""

from __future__ import annotations

import re

from pipeline.errors import InputError

# A comment, or an action with its quoted texts, in which braces mean nothing.
_ACTION = re.compile(
    r"""\{\{ (?:-\s)? \s* (?: /\*.*?\*/ | ((?: "(?:\\.|[^"\\\n])*" | `[^`]*` | '(?:\\.|[^'\\])+' | [^"`'{}] )*?) )
    (?:\s-)? \}\}""",
    re.DOTALL | re.VERBOSE,
)
_OPENS = ("if", "range", "with", "block", "define")


def check(text: str, where: object) -> str:
    """Return *text*, if it looks like a Go template.

    Raises:
        InputError: if an action is not closed, or a block has no end.
    """
    open_blocks: list[str] = []
    end = 0
    for action in _ACTION.finditer(text):
        _no_opening(text, end, action.start(), where)
        end = action.end()
        word = re.match(r"\s*(\w+)", action[1] or "")
        name = word[1] if word else ""
        if name in _OPENS:
            open_blocks.append(f"{{{{ {name} }}}} in line {text.count(chr(10), 0, action.start()) + 1}")
        elif name == "end":
            if not open_blocks:
                raise _broken(where, "an {{ end }} too many", text, action.start())
            open_blocks.pop()
    _no_opening(text, end, len(text), where)
    if open_blocks:
        raise InputError("not a Go template: a block has no end", where=where, found=open_blocks[-1])
    return text


def _no_opening(text: str, start: int, stop: int, where: object) -> None:
    at = text.find("{{", start, stop)
    if at >= 0:
        raise _broken(where, "an action that is not closed", text, at)


def _broken(where: object, what: str, text: str, at: int) -> InputError:
    line = text.count("\n", 0, at) + 1
    return InputError(
        f"not a Go template: {what}", where=where, found=f"line {line}: {text[at : at + 40]!r}",
        hint="TEMPLATE is in Go's text/template, not in Jinja; without one Ollama uses the checkpoint's own template",
    )  # fmt: skip
