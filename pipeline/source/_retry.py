"""When a request is tried again, and how long to wait before: the one policy for everything asked of a Hub."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.source._hub_errors import asked_wait, is_transient


@dataclass(frozen=True)
class Patience:
    """How much trouble is borne; times in seconds.

    *tries* are requests without a new byte between them.  The waits between them start at *first_wait* and double up to
    *longest_wait*.  A server that asks for a longer one gets it up to *longest_asked*; one that asks for more has
    refused, and the user is told when to come back.  *pause* waits until the time is over or the event is set.
    """

    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_asked: float = 300.0
    pause: Callable[[threading.Event, float], object] = threading.Event.wait


class StoppedError(PipelineError):
    """A download that was given up because nobody waits for it any more."""

    def __init__(self) -> None:
        super().__init__("the download was stopped", hint="run the command again; what has arrived is kept")


class Tries:
    """Counts the failures of one task since it last got ahead."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        self._patience = patience
        self._stop = stop
        self._failures = 0

    def got_ahead(self) -> None:
        """Start counting anew: something arrived."""
        self._failures = 0

    def again(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            StoppedError: if the task was stopped meanwhile.
            Exception: *error*, if it would not pass by waiting, or has come too often.
        """
        if self._stop.is_set():
            raise StoppedError from error
        self._failures += 1
        if self._failures >= self._patience.tries or not is_transient(error):
            raise error
        wait = min(self._patience.first_wait * 2 ** (self._failures - 1), self._patience.longest_wait)
        asked = asked_wait(error)
        if asked is not None:
            if asked > self._patience.longest_asked:
                raise error
            wait = max(wait, asked)
        self._patience.pause(self._stop, wait)
        if self._stop.is_set():
            raise StoppedError from error
