"""The chat templates of real models that come with llama.cpp's source, read from there: name -> Jinja."""

from __future__ import annotations

import ast
import re
from pathlib import Path

# C and Python write the escapes that stand in these strings alike.
_CASE = re.compile(
    r'/\* \.name= \*/ "(?P<name>(?:[^"\\]|\\.)*)",(?:(?!\.name=).)*?/\* \.template_str= \*/\s*', re.DOTALL
)
_STRING = re.compile(r'(?:u8|U8C\()?(?P<text>"(?:[^"\\]|\\.)*")')


def from_files(source: Path) -> dict[str, str]:
    """Read models/templates, by file name."""
    return {
        path.stem: path.read_text(encoding="utf-8") for path in sorted((source / "models/templates").glob("*.jinja"))
    }


def from_tests(source: Path) -> dict[str, str]:
    """Read those that llama.cpp's own test of older templates holds, by the model's name."""
    text = (source / "tests" / "test-chat-template.cpp").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for case in _CASE.finditer(text):
        string = _STRING.match(text, case.end())
        if string is not None:
            found[case["name"]] = str(ast.literal_eval(string["text"]))
    return found
