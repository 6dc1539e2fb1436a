"""The report beside a publication: what was made from what, and what was proven.

Facts that may not go into the GGUF (paths, times, versions) live here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from pipeline import __version__, whole
from pipeline.data import data_home, nearest_existing, require_writable
from pipeline.delivery import Delivery, Visible
from pipeline.errors import FormatError, PipelineError, ResourceError, UsageError, from_os_error
from pipeline.measure import TensorError
from pipeline.provenance import SourceFile
from pipeline.store import Name
from pipeline.types import KV, Blob, Check, Plan, Source, ValueType

_MAX_BYTES = 100_000_000  # of a report that is read back
_MAX_STEM = 180  # characters; file systems take 255 bytes, of which a temporary name needs some
_ROOM = 1 << 20  # bytes; a report has some hundred for each tensor


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a published file: *shape* is row-major; *error* is None where it was not measured."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    error: TensorError | None


@dataclass(frozen=True)
class PublishedFile:
    """One published GGUF.

    *name* is its full name at the first target, *manifest* that manifest's digest, *size* in bytes; *types* counts
    tensors by type; *tensors* are in the order of the file.  *key* stands for all that decided its bytes but the
    source's weights; *tuning* says how the recipe was changed.
    """

    name: str
    manifest: str
    recipe: str
    digest: str
    size: int
    types: dict[str, int]
    tensors: tuple[TensorRow, ...]
    key: str = ""
    tuning: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What `package` did.

    *sources* are the files that it was made of, and *look* stands for what the job and the files looked like (None
    where that may not tell them from others).  *targets* says what became of it at each target, *visible* what every
    one of them shows now.  *proof* is the level of the proof.  *errors* says which rows were measured: "none", "sample"
    (one of *sample_every*) or "all".  *tokenizer* are the scalar tokenizer.* keys of the files.  *llama_cpp* is the one
    that the proof ran, None if none did.  *seconds* is wall time, *timings* its parts; *path* is where the report lies.
    """

    model: str
    source: dict[str, Any]
    sources: tuple[SourceFile, ...]
    files: tuple[PublishedFile, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    targets: tuple[Delivery, ...]
    visible: Visible
    look: str | None
    family: str | None
    pre_tokenizer: str
    tokenizer: dict[str, Any]
    proof: str
    errors: str
    sample_every: int | None
    llama_cpp: str | None
    timings: dict[str, float]
    seconds: float
    path: Path

    @property
    def is_unchanged(self) -> bool:
        """Whether all targets had it already, so that nothing was done."""
        return all(one.state == "unchanged" for one in self.targets)

    @property
    def commands(self) -> tuple[str, ...]:
        """What to paste to get the model from each target."""
        return tuple(dict.fromkeys(command for one in self.targets for command in one.commands))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {
            "state": "unchanged" if self.is_unchanged else "published",
            "commands": self.commands,
            "path": str(self.path),
            "seconds": round(self.seconds, 3),
            "version": __version__,
            "tool": {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()},
        }


class Stopwatch:
    """Wall time by stage, in seconds; `lap` ends a stage, and the next one begins."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Count the time since the last lap to *stage*."""
        now = time.monotonic()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """The time from the start to the last lap."""
        return self._last - self._started

    def so_far(self) -> float:
        """Return the time from the start to now."""
        return time.monotonic() - self._started

    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage, in the order in which they first ended."""
        return {stage: round(seconds, 3) for stage, seconds in self._stages.items()}


def describe_source(source: Source) -> dict[str, Any]:
    """Return where a model came from as plain values."""
    paths = {key: str(path) for key, path in asdict(source).items() if isinstance(path, Path)}
    return asdict(source) | paths


def describe_file(
    name: str, manifest: str, plan: Plan, blob: Blob, errors: Sequence[TensorError] | None, key: str = ""
) -> PublishedFile:
    """Describe the file of *plan*, published as *name*; *errors* are those of its tensors, in their order."""
    found: Sequence[TensorError | None] = errors or [None] * len(plan.tensors)
    rows = tuple(
        TensorRow(t.name, t.type, t.shape, t.n_bytes, error) for t, error in zip(plan.tensors, found, strict=True)
    )
    types = dict(Counter(tensor.type for tensor in plan.tensors))
    return PublishedFile(name, manifest, plan.recipe, blob.digest, blob.size, types, rows, key, plan.tuning)


def describe_tokenizer(metadata: Sequence[KV]) -> dict[str, Any]:
    """Return the scalar tokenizer.* keys of a GGUF; of an array its length, of a template the sha256 of its text."""
    found: dict[str, Any] = {}
    for kv in metadata:
        if kv.type is ValueType.ARRAY and kv.key.startswith("tokenizer.ggml."):
            found[f"{kv.key} (length)"] = len(kv.value)
        elif kv.key.startswith("tokenizer.chat_template") and isinstance(kv.value, str):
            found[f"{kv.key} (sha256)"] = hashlib.sha256(kv.value.encode("utf-8", "surrogateescape")).hexdigest()
        elif kv.key.startswith("tokenizer.") and kv.type is not ValueType.ARRAY:
            found[kv.key] = kv.value
    return found


def reports_folder() -> Path:
    """Return the folder of all reports, beside the embedded registry."""
    return data_home() / "reports"


def report_path(name: Name) -> Path:
    """Return where the report of the model *name* goes, one file for each name.

    Where "_" may stand for itself or for what divides the name, or the name is long, a hash tells it from others.
    """
    stem = str(name).replace("/", "_").replace(":", "_")
    if "_" in name.host + name.repository or len(stem) > _MAX_STEM:
        stem = f"{stem[:_MAX_STEM]}-{hashlib.sha256(str(name).encode()).hexdigest()[:12]}"
    return reports_folder() / f"{stem}.json"


def require_room() -> None:
    """Refuse a folder of reports that cannot take another one, before any work is done.

    Raises:
        AccessError: if it cannot be written.
        ResourceError: if its disk is full.
    """
    folder, hint = reports_folder(), "set XDG_DATA_HOME to a folder of your own, with room in it"
    require_writable(folder, "the report could not be written", hint)
    there = nearest_existing(folder)
    if (free := shutil.disk_usage(there).free) < _ROOM:
        raise ResourceError(
            "no room for the report", where=there, expected=f"{_ROOM:,} bytes free", found=f"{free:,} bytes", hint=hint
        )


def save(report: Report) -> None:
    """Write the report whole or not at all, with the time of writing.

    Raises:
        AccessError, ResourceError: if the disk refuses, though it did not before the work.
    """
    text = json.dumps(
        report.as_dict() | {"written": datetime.now(UTC).isoformat(timespec="seconds")}, indent=2, ensure_ascii=False
    )
    try:
        whole.write_text(report.path, text + "\n")
    except OSError as error:
        what = "the model is published, but its report could not be written"
        raise from_os_error(error, what, report.path) from error


def load(path: Path) -> dict[str, Any]:
    """Read a report back, as plain values.

    Raises:
        UsageError: if there is no such file.
        FormatError: if it is no report.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError("cannot be read", where=path, found=error.strerror or error) from error
    try:
        values = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not _is_report(values):
        raise FormatError(
            "is not a report of ours", where=path, expected='JSON with "files", as `publish` writes it beside a model'
        )
    return values


def recall(path: Path) -> Report | None:
    """Read the report at *path* back as what it was; None if there is none, or one of an earlier form."""
    try:
        values = load(path)
        files = tuple(
            PublishedFile(**(file | {"tensors": tuple(map(_row, file["tensors"]))})) for file in values["files"]
        )
        sources = tuple(SourceFile(**row) for row in values["sources"])
        checks = tuple(Check(**row) for row in values["checks"])
        targets = tuple(Delivery(**_tuples(row)) for row in values["targets"])
        visible = _visible(values["visible"])
        kept = {one.name: values[one.name] for one in fields(Report)}
    except (PipelineError, TypeError, KeyError, AttributeError):
        return None
    made = {"files": files, "sources": sources, "checks": checks, "targets": targets, "visible": visible, "path": path}
    return Report(**(_tuples(kept) | made))


def _visible(row: dict[str, Any]) -> Visible:
    blobs = {tag: tuple(Blob(**blob) for blob in blobs) for tag, blobs in row["blobs"].items()}
    return Visible(**(row | {"blobs": blobs}))


def _row(row: dict[str, Any]) -> TensorRow:
    error = row["error"] and TensorError(**row["error"])
    return TensorRow(**(_tuples(row) | {"error": error}))


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


_TEXTS, _OBJECTS = ("name", "recipe", "digest", "manifest"), ("source", "tool", "timings", "tokenizer")
_FIGURES, _RATIOS = ("n_rows", "rmse", "max_abs"), ("relative", "cosine")
_LISTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "files": lambda file: (
        all(isinstance(file.get(key), str) for key in _TEXTS)
        and isinstance(file.get("size"), int)
        and _all(file.get("tensors"), _is_row)
    ),
    "sources": lambda file: (
        all(isinstance(file.get(key), str) for key in ("name", "sha256", "by")) and isinstance(file.get("size"), int)
    ),
    "checks": lambda check: all(isinstance(check.get(key), str) for key in ("name", "state")),
}


def _is_report(values: Any) -> TypeGuard[dict[str, Any]]:
    """Say whether *values* have the form that those who show a report rely on."""
    return (
        isinstance(values, dict)
        and all(_all(values.get(key), check) for key, check in _LISTS.items())
        and all(isinstance(values.get(key), dict) for key in _OBJECTS)
        and all(isinstance(seconds, int | float) for seconds in values["timings"].values())
    )


def _is_row(row: dict[str, Any]) -> bool:
    error = row.get("error")
    if not isinstance(row.get("name"), str) or not isinstance(row.get("type"), str):
        return False
    return error is None or (
        isinstance(error, dict)
        and all(isinstance(error.get(key), int | float) for key in _FIGURES)
        and all(isinstance(error.get(key), int | float | None) for key in _RATIOS)
    )


def _all(values: Any, check: Callable[[dict[str, Any]], bool]) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) and check(value) for value in values)


def find(manifest: str) -> dict[str, Any] | None:
    """Return the newest report of the publication whose manifest has this digest ("sha256:..."), or None."""
    return next((values for values in _newest_first() if manifest in _manifests(values)), None)


def by_manifest() -> dict[str, dict[str, Any]]:
    """Return the newest report of every publication, by the digest of its manifest."""
    found: dict[str, dict[str, Any]] = {}
    for values in _newest_first():
        for manifest in _manifests(values):
            found.setdefault(manifest, values)
    return found


def _newest_first() -> Iterator[dict[str, Any]]:
    for path in sorted(reports_folder().glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True):
        with contextlib.suppress(FormatError, UsageError):
            yield load(path)


def _manifests(values: dict[str, Any]) -> list[str]:
    return [file["manifest"] for file in values["files"]]
