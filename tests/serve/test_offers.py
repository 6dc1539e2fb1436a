"""The allow-list of what is made at the first pull."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.serve import Offers, read_entries
from pipeline.serve._offers import served_name
from pipeline.store import Name

LISTED = {"me": ("me/Big-Model", "me/small.model", "me/x"), "a": ("a/b-c",), "a-b": ("a-b/c", "a-b/d")}


def listing(organisation: str) -> tuple[str, ...]:
    """List what is in an organisation."""
    return LISTED[organisation]


def test_names_mean_one_model() -> None:
    """An alias is in `library`, a repository in `hf` under organisation and name; anything else is no offer."""
    offers = Offers(["demo", "Org/My-Model", "me/*"], listing)
    assert offers.find("library/demo") == "demo"
    assert offers.find("hf/org-my-model") == "Org/My-Model"
    assert offers.find("hf/me-big-model") == "me/Big-Model"
    assert offers.find("hf/me-small.model") == "me/small.model"
    for other in ("library/qwen", "hf/demo", "hf/org-other", "hf/me-none", "org/my-model", "hf/me-", "library/"):
        assert offers.find(other) is None
    assert offers.names == ("hf/org-my-model", "library/demo")
    assert offers.organisations == ("me",)


def test_a_name_that_could_mean_two() -> None:
    """Two repositories with one name are refused, at the start if both are named, else when they are asked for."""
    with pytest.raises(UsageError, match="two models") as caught:
        Offers(["a/b-c", "a-b/c"])
    assert "a/b-c and a-b/c" in str(caught.value)
    offers = Offers(["a/*", "a-b/*"], listing)
    with pytest.raises(UsageError, match="several repositories"):
        offers.find("hf/a-b-c")
    assert offers.find("hf/a-b-d") == "a-b/d"
    assert Offers(["a/*", "a-b/*", "a-b/c"], listing).find("hf/a-b-c") == "a-b/c"


def test_an_organisation_is_listed_now_and_then() -> None:
    """The Hub is asked again after ten minutes, not with each pull, and only about what may be meant."""
    now, asked = 0.0, []

    def counted(organisation: str) -> tuple[str, ...]:
        asked.append(organisation)
        return LISTED[organisation]

    offers = Offers(["me/*", "a/*"], counted, clock=lambda: now)
    for _ in range(3):
        assert offers.find("hf/me-x") == "me/x"
    assert asked == ["me"]
    now = 601.0
    assert offers.find("hf/me-x") == "me/x"
    assert asked == ["me", "me"]


@pytest.mark.parametrize(
    "entry", ["", "*", "*/*", "org/", "org/na*", "../x", "org/name@main", "./folder", "no-alias", "a/b/c"]
)
def test_entries_that_are_none(entry: str) -> None:
    """What is no alias, repository or organisation is refused before the server starts."""
    with pytest.raises(UsageError, match="nothing that can be allowed"):
        Offers([entry])


def test_a_file_of_entries(tmp_path: Path) -> None:
    """One entry a line; comments and empty lines do not count; a file that is not there is said so."""
    path = tmp_path / "allow"
    path.write_text("# mine\n\n  demo  # the built-in one\norg/name\n", encoding="utf-8")
    assert read_entries(path) == ["demo", "org/name"]
    with pytest.raises(UsageError, match="allow-list"):
        read_entries(tmp_path / "none")


_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", fullmatch=True)


@given(organisation=_NAMES, name=_NAMES)
def test_every_repository_has_a_name_that_can_be_pulled(organisation: str, name: str) -> None:
    """Whatever the Hub allows becomes a name that Ollama and all registries accept."""
    served = served_name(f"{organisation}/{name}")
    assert str(Name.parse(f"localhost:11500/{served}")) == f"localhost:11500/{served}:latest"
