"""Names of a release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.publish import split_name
from pipeline.store import Name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("demo", ("library", "demo")),
        ("me/demo", ("me", "demo")),
        ("Qwen/Qwen2.5-0.5B-Instruct", ("qwen", "qwen2.5-0.5b-instruct")),
        ("My Model", ("library", "my-model")),
        ("a.b__c/x", ("a-b-c", "x")),
    ],
)
def test_names_are_made_valid(text: str, parts: tuple[str, str]) -> None:
    """A valid name stays; a repository's name is put into lower case, and into the default namespace if it has none."""
    assert split_name(text) == parts


@given(st.text(alphabet="aA9._-/ é", max_size=20))
def test_whatever_is_made_is_valid(text: str) -> None:
    """No text gives a namespace or model that the strict rules refuse."""
    try:
        namespace, model = split_name(text)
    except UsageError:
        return
    assert Name.parse(f"{namespace}/{model}").repository == f"{namespace}/{model}"
