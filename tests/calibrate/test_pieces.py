"""A long calibration is cut where llama-imatrix can begin again, and only if it is worth it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibrate._pieces import LEAST, Cut, Watch, WorthCuttingError


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 32))
def test_pieces_cover_all(total: int, every: int, width: int) -> None:
    """Every chunk is in one piece; pieces begin where batches do, and none with too little left to begin with."""
    cut = Cut.whole_batches(total, every, width)
    ends = [0]
    while ends[-1] < total:
        ends.append(cut.end(ends[-1]))
    assert ends[-1] == total
    assert all(every <= after - before < every + width for before, after in itertools.pairwise(ends[:-1]))
    assert all(end % width == 0 and total - end >= LEAST for end in ends[1:-1])


def _decided(times: list[float], calls: list[tuple[int, int]], every: int | None = None, width: int = 4) -> Cut | None:
    seen: list[tuple[int, int]] = []
    clock = iter(times)
    watch = Watch(lambda *at: seen.append(at), width, every, lambda: next(clock))
    try:
        for at in calls:
            watch(*at)
    except WorthCuttingError as found:
        return found.cut
    assert seen == calls
    return None


@pytest.mark.parametrize(
    ("total", "start", "batch", "expected"),
    [
        (4000, 5.0, 1.0, Cut(4000, 484)),  # 1000 batches of a second: saved every two minutes
        (4000, 60.0, 1.0, None),  # the program starts so slowly that 17 minutes are no long run
        (40000, 60.0, 1.0, Cut(40000, 4804)),
        (900, 5.0, 1.0, None),  # done in less than four minutes
        (40, 5.0, 500.0, Cut(40, 4)),  # a batch takes eight minutes
        (6, 5.0, 500.0, None),  # too few are left after the first batch
    ],
)
def test_pieces_are_minutes_of_work(total: int, start: float, batch: float, expected: Cut | None) -> None:
    """A run is cut after its first batch if it will take long beside the start of the program and the piece."""
    assert _decided([0.0, start, start + batch], [(0, total), (4, total)]) == expected


def test_a_wish_is_followed_at_once() -> None:
    """With a number of chunks to save after nothing is measured, and no batch is computed twice."""
    assert _decided([0.0, 1.0], [(0, 40)], every=5) == Cut(40, 8)
    assert _decided([0.0, 1.0], [(0, 40), (4, 40), (40, 40)], every=40) is None
