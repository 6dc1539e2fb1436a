"""When a request is tried again, and how long to wait before."""

from __future__ import annotations

import pytest

from pipeline.patience import Patience, asked_wait

NOW = "Sun, 29 Nov 2026 12:00:00 GMT"


def test_waits_double_up_to_the_longest() -> None:
    """The first wait, then twice as long each time, then always the longest, then no more."""
    patience = Patience(tries=6, first_wait=1.0, longest_wait=5.0)
    assert [patience.wait_after(n, None) for n in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_what_the_server_asks_for() -> None:
    """A longer wait is granted, a shorter one does not shorten ours, and one that is too long ends it."""
    patience = Patience(longest_asked=60.0)
    assert [patience.wait_after(2, asked) for asked in (0.0, 60.0, 61.0)] == [2.0, 60.0, None]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Sun, 29 Nov 2026 12:01:30 GMT", "Date": NOW}, 90.0),
        ({"Retry-After": "Sun, 29 Nov 2026 11:00:00 GMT", "Date": NOW}, 0.0),
        ({"Retry-After": "soon", "Date": NOW}, None),
        ({"Retry-After": "-1", "Date": NOW}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 56.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
    ],
)
def test_how_a_server_asks(headers: dict[str, str], seconds: float | None) -> None:
    """By seconds, by a date on its own clock, or by its rate limit; nonsense asks for nothing."""
    assert asked_wait(headers) == seconds
