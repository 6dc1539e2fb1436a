"""The report beside a publication: what was made from what, and what was proven.

Facts that may not go into the GGUF (paths, times, versions) live here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.data import data_home
from pipeline.types import Check, Plan, Source


@dataclass(frozen=True)
class PublishedFile:
    """One published GGUF.

    *name* is its full name, *manifest* that manifest's digest, *size* in bytes; *types* counts tensors by type.
    """

    name: str
    manifest: str
    recipe: str
    digest: str
    size: int
    types: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What `package` did.  *seconds* is wall time; *path* is where the report itself lies."""

    model: str
    source: dict[str, Any]
    files: tuple[PublishedFile, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    family: str | None
    pre_tokenizer: str
    seconds: float
    path: Path

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"path": str(self.path), "seconds": round(self.seconds, 3), "version": __version__}


def describe_source(source: Source) -> dict[str, Any]:
    """Return where a model came from as plain values."""
    paths = {key: str(path) for key, path in asdict(source).items() if isinstance(path, Path)}
    return asdict(source) | paths


def count_types(plan: Plan) -> dict[str, int]:
    """Count the tensors of a plan by type."""
    return dict(Counter(tensor.type for tensor in plan.tensors))


def report_path(name: str) -> Path:
    """Return where the report of the model *name* goes: beside the embedded registry, one file for each name."""
    return data_home() / "reports" / (name.replace("/", "_").replace(":", "_") + ".json")


def save(report: Report) -> None:
    """Write the report whole or not at all, with the time of writing."""
    report.path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        report.as_dict() | {"written": datetime.now(UTC).isoformat(timespec="seconds")}, indent=2, ensure_ascii=False
    )
    fd, temp = tempfile.mkstemp(dir=report.path.parent, prefix=".report-")
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    Path(temp).replace(report.path)
