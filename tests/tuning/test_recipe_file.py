"""People's own recipes: what the file says, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import quant
from pipeline.errors import FormatError
from pipeline.tuning import RecipeFile, read_recipe_file


def test_a_whole_file(tmp_path: Path) -> None:
    """Every field has its place; patterns keep their order."""
    (tmp_path / "r.toml").write_text(
        'recipe = "q4_k"\noutput-type = "q8_0"\nembedding-type = "Q6_K"\npure = true\nleave-output = false\n'
        "[tensor-types]\n'z' = 'iq4_nl'\n'blk\\.[0-3]\\.attn_v' = 'F16'\n"
    )
    types = (("z", "IQ4_NL"), (r"blk\.[0-3]\.attn_v", "F16"))
    options = quant.Options(types, "Q8_0", "Q6_K", pure=True)
    assert read_recipe_file(tmp_path / "r.toml") == RecipeFile("Q4_K_M", options)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    """Nothing said is nothing changed."""
    (tmp_path / "r.toml").write_text("")
    assert read_recipe_file(tmp_path / "r.toml") == RecipeFile(None, quant.Options())


def test_the_example_of_the_documentation_is_read(repository: Path, tmp_path: Path) -> None:
    """The page shows a file that works."""
    text = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    (tmp_path / "r.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    assert read_recipe_file(tmp_path / "r.toml").recipe == "Q4_K_M"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("recipe = ", "not a TOML file"),
        ("\x00", "not a TOML file"),
        ('recipes = "Q4_K_M"', "not what a recipe says"),
        ("recipe = 4", "not what a recipe says"),
        ('pure = "yes"', "not what a recipe says"),
        ('recipe = "Q9"', "no such recipe"),
        ('output-type = "Q9"', "no such tensor type"),
        ("[tensor-types]\n'(' = 'Q4_K'", "not a regular expression"),
        ("[tensor-types]\n'' = 'Q4_K'", "not a regular expression"),
        ("[tensor-types]\na = 4", "no such tensor type"),
    ],
)
def test_what_no_recipe_says(text: str, match: str, tmp_path: Path) -> None:
    """Misspelt fields, other kinds of values and unknown names are errors that name the file."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(FormatError, match=match) as caught:
        read_recipe_file(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A folder, and a device that never ends, are no files; a huge file is no recipe."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match="cannot be read"):
            read_recipe_file(path)
    with pytest.raises(FormatError, match="is not a file"):
        read_recipe_file(Path("/dev/zero"))
    (tmp_path / "r.toml").write_text("#" * (1 << 21))
    with pytest.raises(FormatError, match="too large"):
        read_recipe_file(tmp_path / "r.toml")
