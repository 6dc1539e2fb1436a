"""How much trouble of a network is borne: when a request is tried again, and how long to wait before."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_RATE_LIMIT = re.compile(r"r=0\b.*?\bt=(\d+)")  # RateLimit: "api";r=0;t=55 (draft-ietf-httpapi-ratelimit-headers)


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

    def wait_after(self, failures: int, asked: float | None) -> float | None:
        """Return how long to wait after so many *failures* in a row, or None if it is time to give up.

        *asked* is what the server asked for, if it did.
        """
        if failures >= self.tries or (asked or 0) > self.longest_asked:
            return None
        wait = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
        return max(wait, asked or 0.0)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, by Retry-After (a number or a date) or its RateLimit header."""
    after = str(headers.get("Retry-After", "")).strip()
    if after.isdigit():
        return float(after)
    if after:
        return _until(after, str(headers.get("Date", "")))
    limit = _RATE_LIMIT.search(str(headers.get("RateLimit", "")).replace(" ", ""))
    return float(limit[1]) + 1 if limit else None  # the header rounds down


def _until(after: str, now: str) -> float | None:
    """Return the seconds from *now*, the server's own clock where it tells it, to *after*; both are HTTP dates."""
    try:
        base = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(after) - base).total_seconds())
    except (ValueError, TypeError):
        return None
