"""Cuts a long calibration into pieces, after each of which the matrix so far is saved.

llama-imatrix saves whole matrices only at its end: what it writes on the way (`--output-frequency`) is made in the
middle of a batch, with the first tensor one batch ahead.  So a piece is a run of its own, which goes on from the matrix
of the piece before it.  Sums are added in the same order then, and come out bit by bit as in one run, if each piece
begins where a batch does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# llama-imatrix refuses to begin where two chunks and no more, or less, are left.
LEAST = 3

_SECONDS = 120.0  # of work that may be lost
_STARTS = 20.0  # times as long as the program takes to start


@dataclass(frozen=True)
class Cut:
    """How a calibration of *total* chunks is cut: into pieces of *piece* chunks."""

    total: int
    piece: int

    @classmethod
    def whole_batches(cls, total: int, every: int, width: int) -> Cut:
        """Cut after *every* so many chunks, or a few more, so that none of the batches of *width* is cut."""
        return cls(total, -(-every // width) * width)

    def end(self, done: int) -> int:
        """Say where the piece that begins after *done* chunks ends: at *total*, or where another one can begin."""
        end = done + self.piece
        return end if self.total - end >= LEAST else self.total


class WorthCuttingError(Exception):
    """Ends the first run: it is long enough to be cut, and now we know how."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut


class Watch:
    """The progress of the first run: hands it on to *show*, and ends the run if it is worth being cut.

    *every* is the number of chunks to save after; without it, pieces are as long as some minutes of work.  *width* is
    how many chunks are read at once.

    Raises:
        WorthCuttingError: when that is known.
    """

    def __init__(
        self,
        show: Callable[[int, int], None],
        width: int,
        every: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._width, self._every, self._clock = show, width, every, clock
        self._started = self._read = clock()
        self._is_decided = False

    def __call__(self, done: int, total: int) -> None:
        if not done:
            self._read = self._clock()
        if not self._is_decided and (done or self._every):
            self._is_decided = True
            cut = Cut.whole_batches(total, self._every or self._affordable(done, total), self._width)
            if cut.end(0) < total:
                raise WorthCuttingError(cut)
        self._show(done, total)

    def _affordable(self, done: int, total: int) -> int:
        """Return how many chunks are worth another start of the program: all, where that is half of them or more."""
        seconds = max(_SECONDS, _STARTS * (self._read - self._started))
        per_batch = (self._clock() - self._read) / max(1, done // self._width)
        if per_batch * total / self._width < 2 * seconds:
            return total
        return int(seconds / per_batch + 1) * self._width
