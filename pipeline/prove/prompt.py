"""Render a checkpoint's own chat template, as transformers does, where it can do no harm.

A chat template is a program that came with the weights.  It runs in a child process that holds nothing but it and the
conversation: no environment, no open files of ours, bounded time, memory and output, inside Jinja's immutable sandbox.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pipeline.errors import FormatError, PipelineError, ResourceError, ToolError, UnsupportedError, UsageError

_CHILD = Path(__file__).with_name("_template_child.py")
_WHERE = "chat template"
_MB = 1 << 20


class TemplateRaised(UnsupportedError):  # noqa: N818 - named for what the template did
    """The template itself refused the conversation, by raise_exception; *found* is what it said."""


@dataclass(frozen=True)
class Limits:
    """What a template may use: seconds of wall clock, MiB of memory (address space), MiB of text."""

    seconds: float = 10
    memory_mb: int = 512
    text_mb: int = 16


DEFAULT = Limits()


def render_chats(
    template: str,
    cases: Sequence[Mapping[str, Any]],
    *,
    now: datetime | None = None,
    limits: Limits = DEFAULT,
) -> list[str | PipelineError]:
    """Render the checkpoint's *template* for several sets of variables, in one process.

    What comes back for a case is the text, or the error, to be raised or not: TemplateRaised if the template calls
    raise_exception, UnsupportedError if it fails on this conversation or does what a sandbox forbids, ResourceError if
    it passes one of the *limits*, which are those of all cases together.

    Args:
        template: the Jinja source.
        cases: the variables of each (`variables` makes them).
        now: what strftime_now sees; local time if None.
        limits: what the process may use.

    Raises:
        FormatError: if the template is no valid Jinja.
        ResourceError: if one case takes all the time or memory there is.
        UsageError: if a conversation is not JSON.
        ToolError: if the child process cannot work (Jinja is missing).
    """
    request = {
        "template": template,
        "cases": list(cases),
        "now": (now or datetime.now()).isoformat(),  # templates speak local time
        "path": _jinja_path(),
        "limits": {
            "cpu_seconds": math.ceil(limits.seconds) + 1,
            "memory_bytes": limits.memory_mb * _MB,
            "text_characters": limits.text_mb * _MB,
            # A character is up to 12 bytes of JSON, and the message of an error up to 2000 characters.
            "answer_bytes": 12 * limits.text_mb * _MB + (1 << 15) * (1 + len(cases)),
        },
    }
    try:
        payload = json.dumps(request).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise UsageError("a conversation is made of JSON values", found=str(exc)) from exc
    answer = _ask(payload, limits)
    found = answer.get("cases")
    if not isinstance(found, list) or len(found) != len(cases):
        raise _error(answer, limits)
    return [_text_or_error(case, limits) for case in found]


def variables(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make what transformers hands to a chat template; *extra*, such as enable_thinking or documents, is over it."""
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
        **(extra or {}),
    }


def _jinja_path() -> list[str]:
    """Find where Jinja is, for an isolated interpreter does not look at PYTHONPATH or the user's own packages."""
    found = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    return [str(Path(spec.origin).parent.parent) for spec in found if spec is not None and spec.origin]


def _ask(payload: bytes, limits: Limits) -> dict[str, Any]:
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        question.write(payload)
        question.seek(0)
        code = _run(question, answer, limits)
        answer.seek(0)
        try:
            # What stands there is the child's: a template that broke out of its sandbox could have written it.
            found = json.loads(answer.read())
        except (ValueError, RecursionError):
            found = None
    if code == 0 and isinstance(found, dict):
        return found
    if code == -signal.SIGXCPU:
        raise _too_slow(limits)
    raise ResourceError(
        "the chat template ended the process that rendered it",
        where=_WHERE,
        found=signal.Signals(-code).name if code < 0 else f"exit code {code}",
        hint=f"it may need more than {limits.memory_mb} MiB of memory",
    )


def _run(question: IO[bytes], answer: IO[bytes], limits: Limits) -> int:
    """Run the child and return its exit code; it is dead when this returns, whatever happens."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_CHILD)],
            stdin=question,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env=kept,  # an interpreter may need these to find its own libraries; nothing else is handed on
            cwd="/",
            start_new_session=True,
        )
    except OSError as exc:
        raise ToolError("no process for the chat template could be started", found=str(exc)) from exc
    try:
        return child.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        raise _too_slow(limits) from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _too_slow(limits: Limits) -> ResourceError:
    return ResourceError(
        "the chat template does not come to an end", where=_WHERE, expected=f"{limits.seconds:g} seconds"
    )


def _text_or_error(case: object, limits: Limits) -> str | PipelineError:
    found = case if isinstance(case, dict) else {}
    return found["text"] if isinstance(found.get("text"), str) else _error(found, limits)


def _error(answer: Mapping[str, Any], limits: Limits) -> PipelineError:
    kind, message = str(answer.get("error")), str(answer.get("message"))
    if kind == "raised":
        return TemplateRaised("the chat template refuses this conversation", where=_WHERE, found=message)
    if kind == "syntax":
        return FormatError("the chat template is no valid Jinja", where=_WHERE, found=message)
    if kind == "forbidden":
        return UnsupportedError("the chat template does what a sandbox forbids", where=_WHERE, found=message)
    if kind == "limit":
        allowed = (
            f"{limits.memory_mb} MiB of memory, {limits.text_mb} MiB of text, no deep recursion, ranges up to 100000"
        )
        return ResourceError("the chat template needs too much", where=_WHERE, expected=allowed, found=message)
    if kind == "missing":
        return ToolError("chat templates cannot be rendered without Jinja", found=message, hint="install jinja2")
    return UnsupportedError("the chat template fails on this conversation", where=_WHERE, found=message)
