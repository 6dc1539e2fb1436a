"""docs/faults.md tells of every class of faults that is tried here."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_class_has_a_row(repository: Path) -> None:
    """The classes that the tests count are the rows of the table."""
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py") if path.name != "test_docs.py"
    )
    counted = set(re.findall(r'(?:tally\(|KIND = )"([\w :]+)"', code))
    text = (repository / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w :]+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert {kind for kind, _, _ in rows} == counted
    assert all(tried == survived for _, tried, survived in rows)
