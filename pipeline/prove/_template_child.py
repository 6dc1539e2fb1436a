"""Render one chat template for some conversations, as the only work of a process of its own.

Run as a program (`python -I _template_child.py`); it reads one JSON object from standard input and writes one to
standard output.  It imports nothing of this package: what a template may break is this process and nothing else.

The environment is the one that transformers renders chat templates in (its utils/chat_template_utils.py): immutable
sandbox, blocks trimmed, loop controls, the `generation` tag, a JSON filter that neither escapes HTML nor sorts keys.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any


class _Raised(Exception):  # noqa: N818 - it is what the template says, no error of ours
    """The template called raise_exception."""


class _TooLong(Exception):  # noqa: N818 - likewise
    """The text passed its limit."""


class _Room:
    """How many characters may still come out, of all conversations together."""

    def __init__(self, n_characters: int) -> None:
        self._left = n_characters

    def gather(self, stream: Iterable[str]) -> str:
        """Join what a template gives."""
        pieces: list[str] = []
        for piece in stream:
            pieces.append(piece)
            self._left -= len(piece)
            if self._left < 0:
                raise _TooLong("the text is too long")
        return "".join(pieces)


def main() -> None:
    """Read the request, render, answer."""
    request = json.loads(sys.stdin.buffer.read())
    _limit(request["limits"])
    answer = json.dumps(_answer(request)).encode("ascii")
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _limit(limits: dict[str, int]) -> None:
    """Bound this process for good: seconds of processor time, bytes of memory and of answer, no children, few files."""
    import resource

    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_FSIZE: limits["answer_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for which, value in wanted.items():
        _, hard = resource.getrlimit(which)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the parent's clock still holds
            resource.setrlimit(which, (bound, bound))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sys.path.extend(folder for folder in request["path"] if folder not in sys.path)
    if importlib.util.find_spec("jinja2") is None:
        return {"error": "missing", "message": "no module named jinja2"}
    room = _Room(request["limits"]["text_characters"])
    try:
        environment = _environment(datetime.fromisoformat(request["now"]))
        template = environment.from_string(request["template"])
    except Exception as exc:  # a template can fail in any way; each is an answer
        return _failure(exc)
    return {"cases": [_case(template, variables, room) for variables in request["cases"]]}


def _case(template: Any, variables: dict[str, Any], room: _Room) -> dict[str, str]:
    try:
        return {"text": room.gather(template.generate(variables))}
    except Exception as exc:  # likewise
        return _failure(exc)


def _failure(exc: Exception) -> dict[str, str]:
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    message = str(exc)[:2000]
    if isinstance(exc, _Raised):
        return {"error": "raised", "message": message}
    if isinstance(exc, TemplateSyntaxError):
        return {"error": "syntax", "message": f"line {exc.lineno}: {exc.message}"}
    if isinstance(exc, SecurityError):
        return {"error": "forbidden", "message": message}
    kind = "limit" if isinstance(exc, _TooLong | MemoryError | RecursionError | OverflowError) else "failed"
    return {"error": kind, "message": f"{type(exc).__name__}: {message}"}


def _environment(now: datetime) -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant said (for training masks); here it is a scope and no more."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Callable[[], str]) -> str:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> None:
    raise _Raised(str(message)[:2000])


if __name__ == "__main__":
    main()
