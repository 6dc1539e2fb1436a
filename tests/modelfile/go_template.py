"""The part of Go's text/template that chat families use: if, else, range, variables, fields, comparisons.

Written from the package's documentation; anything else in a template is an error, so a family cannot pass by accident.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

_TAG = re.compile(r"\{\{(?P<left>-(?=\s))?(?P<code>.*?)(?P<right>(?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*(?P<token>"[^"\\]*"|:=|[(),]|[^\s(),"]+)')
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
    "and": lambda *a: next((x for x in a if not x), a[-1]),
    "or": lambda *a: next((x for x in a if x), a[-1]),
    "slice": lambda a, start: a[start:],
}


def execute(template: str, data: dict[str, Any], *, cut_after: str | None = None) -> str:
    """Run *template* on *data*, a tree of dicts, lists and strings with Go's field names.

    *cut_after* names a field (".Response") after whose first printing nothing more is printed, as Ollama does for the
    turn that the model is to write.
    """
    out: list[str] = []
    tokens = list(_tokens(template))
    tree, rest = _block(tokens, 0)
    if rest != len(tokens):
        raise ValueError("an end without a beginning")
    with contextlib.suppress(_Cut):
        _Run(out, cut_after).block(tree, data, {"$": data})
    return "".join(out)


def _tokens(template: str) -> Iterator[tuple[str, str]]:
    at, trim = 0, False
    for tag in _TAG.finditer(template):
        text = template[at : tag.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if tag["left"] else text
        yield "tag", tag["code"].strip()
        at, trim = tag.end(), bool(tag["right"])
    yield "text", template[at:].lstrip() if trim else template[at:]


def _block(tokens: list[tuple[str, str]], at: int) -> tuple[list[Any], int]:
    """Read nodes up to the end or else of this block; return them and where that stands."""
    nodes: list[Any] = []
    while at < len(tokens):
        kind, code = tokens[at]
        word = code.split(" ", 1)[0] if kind == "tag" else ""
        if word in ("end", "else"):
            return nodes, at
        if word in ("if", "range"):
            body, at = _block(tokens, at + 1)
            otherwise: list[Any] = []
            if tokens[at][1] == "else":
                otherwise, at = _block(tokens, at + 1)
            if tokens[at][1] != "end":
                raise ValueError(f"not known here: {tokens[at][1]}")
            nodes.append((word, code[len(word) :].strip(), body, otherwise))
        else:
            nodes.append((kind, code))
        at += 1
    return nodes, at


class _Cut(Exception):  # noqa: N818 - a way out, no error
    pass


class _Run:
    def __init__(self, out: list[str], cut_after: str | None) -> None:
        self.out, self.cut_after = out, cut_after

    def block(self, nodes: list[Any], dot: Any, names: dict[str, Any]) -> None:
        names = dict(names)
        for node in nodes:
            self.node(node, dot, names)

    def node(self, node: Any, dot: Any, names: dict[str, Any]) -> None:
        kind, code, *blocks = node
        if kind == "text":
            self.out.append(code)
        elif kind == "if":
            self.block(blocks[0] if self.value(code, dot, names) else blocks[1], dot, names)
        elif kind == "range":
            left, right = code.split(":=")
            first, second = (name.strip() for name in left.split(","))
            for i, item in enumerate(self.value(right, dot, names)):
                self.block(blocks[0], item, names | {first: i, second: item})
        elif ":=" in code:
            name, expression = code.split(":=")
            names[name.strip()] = self.value(expression, dot, names)
        else:
            self.out.append(str(self.value(code, dot, names)))
            if code == self.cut_after:
                raise _Cut

    def value(self, code: str, dot: Any, names: dict[str, Any]) -> Any:
        tokens = [m["token"] for m in _TOKEN.finditer(code)]
        value, at = self.call(tokens, 0, dot, names)
        if at != len(tokens):
            raise ValueError(f"not known here: {code}")
        return value

    def call(self, tokens: list[str], at: int, dot: Any, names: dict[str, Any]) -> tuple[Any, int]:
        if tokens[at] not in _FUNCTIONS:
            return self.term(tokens, at, dot, names)
        function, arguments, at = _FUNCTIONS[tokens[at]], [], at + 1
        while at < len(tokens) and tokens[at] != ")":
            argument, at = self.term(tokens, at, dot, names)
            arguments.append(argument)
        return function(*arguments), at

    def term(self, tokens: list[str], at: int, dot: Any, names: dict[str, Any]) -> tuple[Any, int]:
        word = tokens[at]
        if word == "(":
            value, at = self.call(tokens, at + 1, dot, names)
            return value, at + 1
        if word.startswith('"'):
            return word[1:-1], at + 1
        if word.isdigit():
            return int(word), at + 1
        name, *fields = word.split(".")
        value = names[name] if name else dot
        for field in fields:
            value = value.get(field, "")
        return value, at + 1
