"""Rows that many architectures share."""

from __future__ import annotations

from pipeline.arch._base import Row
from pipeline.arch._steps import Step


def pair(source: str, target: str, steps: tuple[Step, ...] = (), *, optional: bool = False) -> tuple[Row, Row]:
    """Make the rows of a weight and a bias; *steps* are for both, an *optional* bias may be absent."""
    return (
        Row(f"{source}.weight", f"{target}.weight", steps),
        Row(f"{source}.bias", f"{target}.bias", steps, optional=optional),
    )
