"""Chooses llama.cpp's rule of pre-tokenization: by what tokenizer.json says, else by what it does to texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.tokenizer.behaviour import same_cuts
from pipeline.tokenizer.pretokenizers import HOW_TO_ADD, ROWS, Row, normalizers, read_steps


def recognise(
    normalizer: Any, pre_tokenizer: Any, ignore_merges: bool, is_idle: Callable[[], bool], path: Path
) -> tuple[Row, tuple[str, ...]]:
    """Find the row that cuts text as *normalizer* and *pre_tokenizer* of tokenizer.json at *path* do.

    What the file says is compared with the rows first.  A pre_tokenizer that no row writes like that is run over many
    texts beside every row's: one that cuts all of them alike is the same rule in other words.  *is_idle* tells whether
    *ignore_merges* makes no difference for this vocabulary; it is asked only when no row with that flag fits.

    Returns the row and notes about what llama.cpp does not do.

    Raises:
        UnsupportedError: if there is none; shows the nearest row and where it differs.
        FormatError: if the two are not what tokenizers writes.
    """
    notes = _normalizer_notes(normalizer, path)
    found, why = _rows_that_say(pre_tokenizer, path)
    if not found:
        found, seen = same_cuts(pre_tokenizer, why, path)
        notes += (
            f"pre_tokenizer is written in a way of its own: on {seen} texts it cuts like llama.cpp's {found[0].pre!r}",
        )
    rows = [row for row in found if row.ignore_merges == ignore_merges]
    if not rows and is_idle():
        rows = found
    if rows:
        return rows[0], notes + ((rows[0].limit,) if rows[0].limit else ())
    raise UnsupportedError(
        f"no rule of llama.cpp has these steps with ignore_merges {str(ignore_merges).lower()}",
        where=path,
        expected=f"ignore_merges {str(not ignore_merges).lower()}, as {found[0].pre!r} has it",
        found=" / ".join(found[0].steps),
        hint=HOW_TO_ADD,
    )


def _rows_that_say(pre_tokenizer: Any, path: Path) -> tuple[list[Row], str]:
    """List the rows that are this pre_tokenizer but for spelling, or say in words why there is none."""
    try:
        steps = read_steps(pre_tokenizer, path)
    except UnsupportedError as error:
        return [], error.what
    rows = [row for row in ROWS if row.steps == steps.steps]
    if steps.inverted and rows and not any(row.covers for row in rows):
        return [], "it drops text that its pattern does not match"
    return rows, "no row has its steps"


def _normalizer_notes(normalizer: Any, path: Path) -> tuple[str, ...]:
    kinds = [node["type"] for node in normalizers(normalizer, path)]
    if not kinds:
        return ()
    if set(kinds) == {"NFC"}:
        return ("llama.cpp has no NFC normalizer: text with decomposed characters is cut differently",)
    raise UnsupportedError(
        "llama.cpp cannot normalize text as this tokenizer does",
        where=path,
        expected="no normalizer, or NFC",
        found=" + ".join(kinds),
        hint="no GGUF of this model can be right; look for one whose tokenizer.json has another normalizer",
    )
