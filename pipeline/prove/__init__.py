"""What was checked of a publication: each part is proven, not checked (with the command that would), or different."""

from pipeline.prove._quick import LEVELS, files, refuse_differences
from pipeline.prove._runs import Prompting, expected_prompts
from pipeline.prove._template import Template
from pipeline.prove.answer import answer_of
from pipeline.prove.conversations import Setting
from pipeline.prove.tokenizer import Comparison, Difference, compare_keys

__all__ = [
    "LEVELS",
    "Comparison",
    "Difference",
    "Prompting",
    "Setting",
    "Template",
    "answer_of",
    "compare_keys",
    "expected_prompts",
    "files",
    "refuse_differences",
]
