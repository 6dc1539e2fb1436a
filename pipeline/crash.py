"""Places at which the tests kill the process, to prove that whatever is left then does no harm.

`GGUF_PIPELINE_CRASH=POINT[:N]` makes the process kill itself (SIGKILL: nothing is cleaned up) when it passes POINT for
the N-th time; `*` is any point.  Without that variable a point costs one comparison.  The table says which command
passes each point; the tests kill that command there, at every row.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

# What the command is doing: "publish" from the Hub, "copy" (publish a GGUF as it is), "convert", "imatrix", "rm", "gc".
POINTS = {
    "text written": "publish",  # a report, the lock file: whole, but not under its name yet
    "text named": "publish",
    "piece downloaded": "publish",
    "download synced": "publish",
    "download named": "publish",
    "link made": "publish",  # of a file in the Hub's cache, beside its name
    "link named": "publish",
    "headers read": "publish",
    "staging made": "publish",
    "header written": "publish",  # of a GGUF
    "chunk written": "publish",
    "file written": "publish",
    "file synced": "publish",
    "file named": "publish",
    "files proven": "publish",
    "blob synced": "publish",
    "blob named": "publish",
    "blob added": "publish",
    "manifest written": "publish",
    "manifest named": "publish",
    "all named": "publish",
    "chunk copied": "copy",
    "copy synced": "copy",
    "copy named": "copy",
    "parts written": "convert",  # with --split-size
    "part named": "convert",
    "matrix saved": "imatrix",  # of the chunks up to here
    "matrix read back": "imatrix",  # the whole one, not under its name yet
    "matrix named": "imatrix",
    "manifest removed": "rm",
    "blob removed": "rm",
    "garbage removed": "gc",
}

_ARMED = os.environ.get("GGUF_PIPELINE_CRASH")
_lock = threading.Lock()

passes = Counter[str]()  # how often each point was passed, counted only where the variable is set


def point(name: str) -> None:
    """Pass the point *name* of the table; the process ends here if that is what the environment says."""
    if _ARMED is not None:
        _pass(name, _ARMED)


def _pass(name: str, armed: str) -> None:
    wanted, _, number = armed.partition(":")
    with _lock:
        passes[name] += 1
        passes["*"] += 1
        if wanted in (name, "*") and passes[wanted] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
