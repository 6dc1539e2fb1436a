"""Figures for people."""

from __future__ import annotations

import pytest

from pipeline.units import size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_645_792, "1.65 MB"), (4.7e9, "4.70 GB"), (3e15, "3000.00 TB")],
)
def test_sizes(n_bytes: float, text: str) -> None:
    """Units are decimal, as in file managers and registries."""
    assert size(n_bytes) == text
