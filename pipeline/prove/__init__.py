"""What was checked of a publication: each part is proven, not checked (with the command that would), or different."""

from pipeline.prove._quick import read_back, refuse_differences, run

__all__ = ["read_back", "refuse_differences", "run"]
