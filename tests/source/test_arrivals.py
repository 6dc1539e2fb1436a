from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.source._arrivals import Arrivals
from pipeline.source._manifest import RemoteFile

PATHS = [Path(name) for name in "abcdef"]


def _arrivals(fetch: Callable[[Path], None], threads: int = 1, hang_up: Callable[[], None] = lambda: None) -> Arrivals:
    files = {path: RemoteFile(path.name, None, None) for path in PATHS}
    return Arrivals(files, lambda path, _file: fetch(path), hang_up, threads)


def test_files_come_in_order() -> None:
    """Without a word files come in the order in which they were given."""
    came: list[Path] = []
    arrivals = _arrivals(came.append)
    arrivals.wait_for_all()
    assert came == PATHS


def test_preferred_files_come_first() -> None:
    """What is preferred comes first, in that order, the rest after; what is unknown or under way does no harm."""
    came: list[Path] = []
    may_go_on, is_in_first = threading.Event(), threading.Event()

    def fetch(path: Path) -> None:
        is_in_first.set()
        assert may_go_on.wait(30)
        came.append(path)

    arrivals = _arrivals(fetch)
    arrivals.prefer([])
    assert is_in_first.wait(30)
    arrivals.prefer([Path("e"), Path("x"), Path("c"), Path("e"), Path("a")])
    may_go_on.set()
    arrivals.wait_for_all()
    assert came == [Path(name) for name in "aecbdf"]


def test_nothing_comes_before_it_is_needed() -> None:
    """The order given first is that in which files come: none is begun before; what is not wanted never comes."""
    came: list[Path] = []
    arrivals = _arrivals(came.append)
    assert came == []
    arrivals.prefer(reversed(PATHS))
    arrivals.wait_for_all()
    assert came == PATHS[::-1]
    never = Arrivals({PATHS[0]: RemoteFile("a", None, None)}, lambda *_: None, lambda: None, 1, is_wanted=False)
    with pytest.raises(PipelineError, match="was not to be downloaded"):
        never.wait(PATHS[0])


def test_wait_is_for_one_file() -> None:
    """Waiting returns when that file is there, though others are not."""
    blocked = threading.Event()

    def fetch(path: Path) -> None:
        if path != PATHS[0]:
            blocked.wait(30)

    arrivals = _arrivals(fetch, threads=2)
    arrivals.wait(PATHS[0])
    arrivals.wait(Path("unknown"))
    blocked.set()
    arrivals.wait_for_all()


def test_first_failure_stops_all() -> None:
    """After one failure no other file is begun, what runs is hung up, and everybody gets that error."""
    hung_up = threading.Event()
    begun: list[Path] = []

    def fetch(path: Path) -> None:
        begun.append(path)
        if path == PATHS[1]:
            raise PipelineError("the second")
        assert hung_up.wait(30)
        raise PipelineError("the first, because it was hung up")

    arrivals = _arrivals(fetch, threads=2, hang_up=hung_up.set)
    for path in PATHS:
        with pytest.raises(PipelineError, match="the second"):
            arrivals.wait(path)
    with pytest.raises(PipelineError, match="the second"):
        arrivals.wait_for_all()
    assert sorted(begun) == PATHS[:2]


def test_stop_wakes_all() -> None:
    """Stopping ends the threads and wakes who waits."""
    hung_up = threading.Event()
    arrivals = _arrivals(lambda _path: hung_up.wait(30) or None, hang_up=hung_up.set, threads=3)
    errors: list[str] = []

    def wait() -> None:
        try:
            arrivals.wait(PATHS[5])
        except PipelineError as error:
            errors.append(error.what)

    waiter = threading.Thread(target=wait)
    waiter.start()
    arrivals.stop()
    waiter.join(30)
    assert errors == ["the download was stopped"]
    assert not [t for t in threading.enumerate() if t.name.startswith("download")]
    arrivals.stop()
