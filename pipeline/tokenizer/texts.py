"""Texts that tell tokenizers apart, by what they are about, and all short neighbourhoods of kinds of characters."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("texts.json")


def texts() -> dict[str, str]:
    """Give about eighty short texts by name."""
    return dict(_read()["texts"])


def crossings() -> list[str]:
    """Give every pair of kinds of characters with each kind between them, one text for each pair.

    There is one character for each kind that some pre-tokenizer's pattern tells from the others.
    """
    kinds = _read()["kinds"]
    return [" ".join(a + kind + b + b for kind in kinds) for a in kinds for b in kinds]


@cache
def _read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_FILE.read_text("utf-8"))
    return document
