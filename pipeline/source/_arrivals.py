"""Files on their way: threads fetch them in the order in which they are needed, others wait for one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.source._manifest import RemoteFile
from pipeline.source._retry import StoppedError

_LONGEST_GOODBYE = 2.0  # seconds for all threads to notice that they were stopped; as daemons they hold up nothing


class Arrivals:
    """Fetches *files*, by the path at which each arrives, with *fetch*, in *threads* threads.

    It begins with the first `wait` or `prefer`, so that nothing is under way before its order is known; if *is_wanted*
    is false it never does.
    The first failure stops all: whoever waits for any file is told, for no use of the others is left.  *hang_up* must
    make every running *fetch* end soon.
    """

    def __init__(
        self,
        files: Mapping[Path, RemoteFile],
        fetch: Callable[[Path, RemoteFile], None],
        hang_up: Callable[[], None],
        threads: int,
        *,
        is_wanted: bool = True,
    ) -> None:
        self._files = dict(files)
        self._fetch = fetch
        self._hang_up = hang_up
        self._queue = list(files)
        self._missing = set(files)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        # Daemons: the end of the program does not wait for a download.
        self._threads = [
            threading.Thread(target=self._work, name=f"download-{i}", daemon=True)
            for i in range(min(threads, len(files)))
        ]
        self._is_wanted = is_wanted
        self._is_started = False

    def _start(self) -> None:
        if self._is_wanted and not self._is_started and self._error is None:
            self._is_started = True
            for thread in self._threads:
                thread.start()

    def wait(self, path: Path) -> None:
        """Block until the file at *path* is whole and checked; return at once for a path that is none of these.

        Raises:
            PipelineError: if a file failed, or was stopped, or was never to be fetched.
        """
        with self._changed:
            self._start()
            while path in self._missing:
                if self._error is not None:
                    raise self._error
                if not self._is_wanted:
                    raise PipelineError("this file was not to be downloaded", where=path)
                self._changed.wait()

    def wait_for_all(self) -> None:
        """Block until all files are whole and checked; without success stop what is under way.

        Raises:
            PipelineError: as `wait` does.
        """
        try:
            for path in self._files:
                self.wait(path)
        except BaseException:
            self.stop()
            raise

    def prefer(self, paths: Iterable[Path]) -> None:
        """Fetch what is not under way yet in the order of *paths*, and the rest after."""
        order = {path: i for i, path in enumerate(dict.fromkeys(paths))}
        with self._changed:
            self._queue.sort(key=lambda path: order.get(path, len(order)))
            self._start()

    def stop(self) -> None:
        """Stop fetching; what is missing stays so, and whoever waits for it is told."""
        self._fail(StoppedError())
        end = time.monotonic() + _LONGEST_GOODBYE
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            self._queue.clear()
            self._changed.notify_all()
        self._hang_up()

    def _work(self) -> None:
        while (path := self._next()) is not None:
            try:
                self._fetch(path, self._files[path])
            except BaseException as error:  # it is raised again where somebody waits
                self._fail(error)
                return
            with self._changed:
                self._missing.discard(path)
                self._changed.notify_all()

    def _next(self) -> Path | None:
        with self._changed:
            return self._queue.pop(0) if self._queue else None
