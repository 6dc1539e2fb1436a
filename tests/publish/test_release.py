"""Names of a release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.publish import require_name, split_name
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


@pytest.mark.parametrize("text", ["demo", "me/demo", "a_b/my--model.v2_x__y", "library/demo"])
def test_a_valid_name_is_accepted(text: str) -> None:
    """A name that can be published as it stands is."""
    require_name(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Me/Demo", "try --name me/demo"),
        ("My Model", "try --name my-model"),
        ("demo:Q4_K_M", "try --name demo"),
        ("a.b/c", "try --name a-b/c"),
        ("a/b/c/d", "try c/d;"),
        ("localhost:11500/me/demo", "try me/demo; which registry serves it"),
        ("/demo", "--name library/my-model"),
        ("demo/", "--name library/my-model"),
        ("", "--name library/my-model"),
    ],
)
def test_a_persons_name_is_not_changed(text: str, hint: str) -> None:
    """What is not valid as it stands is refused, with the nearest name that is."""
    with pytest.raises(UsageError) as caught:
        require_name(text)
    assert hint in str(caught.value)
