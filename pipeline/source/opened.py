"""What a caller holds while a model is open: where it is, and a way to wait for files that are still on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.patience import Patience
from pipeline.source._arrivals import Arrivals
from pipeline.types import FileHead, Source

Log = Callable[[str], None]
Progress = Callable[[str, int, int | None], None]
Weights = Literal["none", "stream", "all"]


def silent(_line: str) -> None:
    """Drop a log line."""


@dataclass(frozen=True)
class Options:
    """How a model is opened.

    *weights*: "all" downloads them before the model is open, "stream" while it is (from the first `prefer` or `wait`
    on), "none" only their headers.
    *update* asks the Hub what the branch is now, instead of taking the commit that was recorded.  *rehash* hashes files
    that are in the cache already; otherwise their size must do.  *log* takes one line of text for what a person should
    know, *progress* (file, bytes done, bytes in all; of all files together, from any thread).
    """

    weights: Weights = "all"
    update: bool = False
    rehash: bool = False
    log: Log = silent
    progress: Progress | None = None
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class OpenSource:
    """An open model.

    *remote_headers* has the headers of weights that were not on this machine when it was opened, by the path at which
    they will be.
    """

    source: Source
    remote_headers: Mapping[Path, FileHead] = field(default_factory=dict)
    arrivals: Arrivals | None = None

    def wait(self, path: Path) -> None:
        """Block until the file at *path* is whole and checked; return at once if it was there from the start.

        Raises:
            PipelineError: if its download, or that of another file, failed or was stopped, or weights were not wanted.
        """
        if self.arrivals:
            self.arrivals.wait(path)

    def prefer(self, paths: Iterable[Path]) -> None:
        """Say in which order the files are needed, and begin to download them; without a word they come by name."""
        if self.arrivals:
            self.arrivals.prefer(paths)

    def stop(self) -> None:
        """Stop what is still on its way; whoever waits for it gets an error.  Closing the model does it too."""
        if self.arrivals:
            self.arrivals.stop()
