"""The process that makes one model for a registry: a job as JSON on stdin, progress on stderr.

It ends with status 0 and the model published, or with another and the failure as JSON on stdout.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pipeline import flow
from pipeline.errors import PipelineError, ResourceError
from pipeline.job import Job
from pipeline.plan import make_plan

_STEP_S = 10.0  # between two lines about one long step


class LineLog:
    """A flow's log as lines, each with a label, for a server's own log."""

    def __init__(self, label: str, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._label, self._write = label, write

    def stage(self, text: str) -> None:
        """Say that a stage begins."""
        self._write(f"{self._label}: {text}\n")

    def note(self, text: str) -> None:
        """Say something the owner of the server must know."""
        self._write(f"{self._label}: note: {text}\n")

    @contextlib.contextmanager
    def bar(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show one long step, now and then."""
        shown = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal shown
            if total and time.monotonic() - shown >= _STEP_S:
                shown = time.monotonic()
                self.stage(f"{text}: {100 * done / total:.0f} %")

        self.stage(f"{text} ...")
        yield progress


def make(model: str, name: str, quants: tuple[str, ...], max_bytes: int | None, log: LineLog) -> None:
    """Publish *model* as *name* in the embedded registry's store.

    Raises:
        PipelineError: from any stage, and if the file would be larger than *max_bytes*.
    """
    if max_bytes is not None:
        with flow.prepare(model, log) as prepared:
            (quant,) = flow.choose_quants(quants, prepared)
            size = make_plan(prepared.blueprint, quant).file_bytes
        if size > max_bytes:
            raise ResourceError("larger than this registry makes", expected=f"{max_bytes:,} bytes", found=f"{size:,}")
    flow.package(Job(model, quants, name=name, latest=not quants), log)


def main() -> int:
    """Do the job on stdin; return the exit status."""
    signal.signal(signal.SIGTERM, _stop)
    job: dict[str, Any] = json.load(sys.stdin)
    try:
        make(job["model"], job["name"], tuple(job["quants"]), job["max_bytes"], LineLog(job["label"]))
    except PipelineError as error:
        json.dump({"exit_code": error.exit_code, "message": str(error)}, sys.stdout)
        return error.exit_code
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    """End like an error does, so that every `finally` runs."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
