"""When a request to a Hub is tried again: the one policy for everything asked of it."""

from __future__ import annotations

import threading

from pipeline.errors import PipelineError
from pipeline.patience import Patience
from pipeline.source._hub_errors import asked_wait, is_transient


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
        wait = self._patience.wait_after(self._failures, asked_wait(error))
        if wait is None or not is_transient(error):
            raise error
        self._patience.pause(self._stop, wait)
        if self._stop.is_set():
            raise StoppedError from error
