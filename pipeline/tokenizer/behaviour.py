"""Compares pre-tokenizers by what they do: a pre_tokenizer of unknown spelling beside every known row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import ResourceError, UnsupportedError
from pipeline.strict_json import short
from pipeline.tokenizer.pretokenizers import HOW_TO_ADD, ROWS, Row, pretokenizers, write_steps
from pipeline.tokenizer.texts import crossings, texts

_CHILD = Path(__file__).with_name("_splits_child.py")
_LIMITS = {"cpu_seconds": 20, "memory_bytes": 2 << 30}
_SECONDS = 60


def same_cuts(pre_tokenizer: Any, why: str, path: Path) -> tuple[list[Row], int]:
    """Find the rows that cut all texts as *pre_tokenizer* of tokenizer.json at *path* does, and the number of texts.

    Rows of one meaning (some differ in ignore_merges alone) come together, others never: the texts tell all others
    apart.  *why* says what is unusual, for the error.  The library runs in a process of its own, for the pattern comes
    from the checkpoint.

    Raises:
        UnsupportedError: if no row does, with the nearest one and the first text that differs.
        ResourceError: if the pre_tokenizer takes more time or memory than any honest one.
        FormatError: if it is not what tokenizers writes.
    """
    steps = pretokenizers(pre_tokenizer, path)
    samples, more = list(texts().values()), crossings()
    answer = _ask(
        {
            "limits": _LIMITS,
            "file": pre_tokenizer if steps else {"type": "Sequence", "pretokenizers": []},
            "rows": [write_steps(row.steps) for row in ROWS],
            "texts": samples,
            "more": more,
        },
        path,
    )
    if "error" in answer:
        raise UnsupportedError(
            "pre_tokenizer is unknown, and the tokenizers library cannot run it",
            where=path,
            expected="a pre_tokenizer that this version of the library knows",
            found=answer["error"],
            hint=HOW_TO_ADD,
        )
    results = list(zip(ROWS, answer["rows"], strict=True))
    found = [row for row, result in results if result["n"] == 0]
    if found:
        return found, len(samples) + len(more)
    raise _unknown(results, len(samples), why, path)


def _unknown(results: list[tuple[Row, dict[str, Any]]], n_texts: int, why: str, path: Path) -> UnsupportedError:
    row, result = min(results, key=lambda pair: pair[1]["n"])
    return UnsupportedError(
        f"pre-tokenizer is unknown: {why}",
        where=path,
        expected=f"nearest is {row.pre!r}, which cuts {result['n']} of {n_texts} texts differently: "
        f"{short(result['text'])} as {short(result['row'])}",
        found=short(result["file"]),
        hint=HOW_TO_ADD,
    )


def _ask(request: dict[str, Any], path: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        answer = None
    if not isinstance(answer, dict):
        raise ResourceError(
            "pre_tokenizer takes too much time or memory, or breaks the tokenizers library",
            where=path,
            expected=f"at most {_LIMITS['cpu_seconds']} seconds for some short texts",
            hint="a pattern of this tokenizer.json is broken, or meant to do harm",
        )
    return answer
