"""What this machine has: figures that are possible, and that follow what this process does."""

from __future__ import annotations

import numpy as np

from pipeline import machine


def test_figures_are_possible() -> None:
    """At least one core; what is in use is less than what was, than what is there."""
    assert machine.usable_cores() >= 1
    assert 1 << 20 < machine.resident_bytes() <= machine.peak_bytes() < machine.total_memory()
    assert 0 < machine.available_memory() <= machine.total_memory()


def test_memory_that_is_taken_is_seen() -> None:
    """64 MB of touched memory are counted, within a tenth."""
    before = machine.resident_bytes()
    taken = np.ones(8_000_000)
    assert 57e6 < machine.resident_bytes() - before < 71e6
    assert machine.peak_bytes() >= before + taken.nbytes * 0.9
