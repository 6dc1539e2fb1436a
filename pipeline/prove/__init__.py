"""What was checked of a publication: each part is proven, not checked (with the command that would), or different."""

from pipeline.prove._quick import LEVELS, files, refuse_differences
from pipeline.prove._runs import Prompting
from pipeline.prove._template import Template
from pipeline.prove.tokenizer import Comparison, Difference, compare_keys

__all__ = [
    "LEVELS",
    "Comparison",
    "Difference",
    "Prompting",
    "Template",
    "compare_keys",
    "files",
    "refuse_differences",
]
