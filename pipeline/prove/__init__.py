"""What was checked of a publication: each part is proven, not checked (with the command that would), or different."""

from pipeline.prove._quick import LEVELS, Prompting, files, refuse_differences

__all__ = ["LEVELS", "Prompting", "files", "refuse_differences"]
