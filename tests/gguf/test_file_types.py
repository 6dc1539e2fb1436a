"""The names of files' types against those of the `gguf` package."""

from __future__ import annotations

from gguf.constants import LlamaFileType

from pipeline.gguf import FILE_TYPES


def test_numbers_have_the_names_of_the_package() -> None:
    """Every type that the package knows is called the same here, but for its prefix; "guessed" is none."""
    theirs = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}
    assert theirs.pop(1024) == "GUESSED"
    assert theirs.items() <= FILE_TYPES.items()
