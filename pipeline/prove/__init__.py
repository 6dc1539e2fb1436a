"""What was checked of a publication: each part is proven, not checked (with the command that would), or different."""

from pipeline.prove._quick import LEVELS, Prompting, expected_prompts, files, refuse_differences
from pipeline.prove.tokenizer import Comparison, Difference, compare_keys

__all__ = [
    "LEVELS",
    "Comparison",
    "Difference",
    "Prompting",
    "compare_keys",
    "expected_prompts",
    "files",
    "refuse_differences",
]
