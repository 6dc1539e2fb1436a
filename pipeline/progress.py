"""What a person sees while work goes on: a bar on a terminal, one line per stage in a pipe.  Always on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """Shows the stages of a flow.  With *quiet*, shows nothing but notes."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        # rich looks at NO_COLOR, TERM and whether stderr is a terminal.
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """Say that a stage begins."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Say something the user must know, whatever the settings."""
        self.console.print(f"note: {text}", markup=False)

    @contextlib.contextmanager
    def bar(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show one long step; the callback takes what is done and what there is in all, in the same unit."""
        if self.quiet:
            yield lambda _done, _total: None
            return
        if not self.console.is_terminal:
            started = time.monotonic()
            self.stage(f"{text} ...")
            yield lambda _done, _total: None
            self.stage(f"{text}: done in {time.monotonic() - started:.1f} s")
            return
        description = TextColumn("{task.description}", markup=False)  # a path may have brackets in it
        columns = (description, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(text, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


class Silent:
    """A log that shows nothing and remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)

    def bar(self, text: str) -> AbstractContextManager[Callable[[int, int], None]]:  # noqa: ARG002
        """Show nothing."""
        return contextlib.nullcontext(lambda _done, _total: None)
