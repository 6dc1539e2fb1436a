"""Cut texts with several pre-tokenizers and tell where they differ, as the only work of a process of its own.

Run as a program; it reads one JSON object from standard input and writes one to standard output.  A pattern of a
checkpoint may take for ever or break the library: what it breaks is this process and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from typing import Any


def main() -> None:
    """Read {"limits", "file", "rows", "texts", "more"}, answer {"rows": [{"n", "text", "file", "row"}]} or {"error"}.

    Only rows that cut all *texts* alike are tried on *more*; "n" is the number of texts cut differently.
    """
    request = json.loads(sys.stdin.buffer.read())
    for which, value in (
        (resource.RLIMIT_CPU, request["limits"]["cpu_seconds"]),
        (resource.RLIMIT_AS, request["limits"]["memory_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the parent's clock still holds
            resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    sys.stdout.write(json.dumps(_answer(request)))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        cuts = {name: _cut(request["file"], request[name]) for name in ("texts", "more")}
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        return {"error": str(error)[:300]}
    results = []
    for row in request["rows"]:
        for name, ours in cuts.items():
            result = _compare(ours, _cut(row, request[name]), request[name])
            if result["n"]:
                break
        results.append(result)
    return {"rows": results}


def _compare(ours: list[list[str]], theirs: list[list[str]], texts: list[str]) -> dict[str, Any]:
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if not differing:
        return {"n": 0}
    first = differing[0]
    at = next((i for i, (a, b) in enumerate(zip(ours[first], theirs[first], strict=False)) if a != b), 0)
    return {
        "n": len(differing),
        "text": texts[first],
        "file": ours[first][at : at + 3],
        "row": theirs[first][at : at + 3],
    }


def _cut(pre_tokenizer: dict[str, Any], texts: list[str]) -> list[list[str]]:
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer, "model": model}
    cut = Tokenizer.from_str(json.dumps(document)).pre_tokenizer.pre_tokenize_str
    return [[piece for piece, _ in cut(text)] for text in texts]


if __name__ == "__main__":
    main()
