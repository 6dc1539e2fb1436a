"""The page for people at "/": what can be pulled, how large and how good it is, and the line to paste.

It has no scripts, and its policy allows none: names and figures come from files that anybody may have pushed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from pipeline import __version__, data, quant
from pipeline import report as reports
from pipeline.errors import FormatError, UsageError
from pipeline.serve._offers import served_name
from pipeline.serve._settings import HOST, SETTINGS, STORE
from pipeline.store import Entry
from pipeline.units import size


@dataclass(frozen=True)
class Quality:
    """What a report says of one published file."""

    recipe: str
    origin: str
    error: str
    error_of: str


@dataclass(frozen=True)
class Row:
    """One manifest as the page shows it; *others* are further tags of it."""

    tag: str
    others: tuple[str, ...]
    size: str
    quantization: str
    error: str
    error_of: str
    id: str
    digest: str
    modified: str
    command: str


@dataclass(frozen=True)
class Model:
    """One repository as the page shows it."""

    repository: str
    origin: str
    rows: tuple[Row, ...]


class Reports:
    """The reports in *folder*, by the digest of the manifest that they are about; each file is read once."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or reports.reports_folder()
        self._read: dict[Path, tuple[int, dict[str, Quality]]] = {}

    def by_manifest(self) -> dict[str, Quality]:
        """Return what is known now; of two reports about one publication the newer counts."""
        there = sorted((path.stat().st_mtime_ns, path) for path in self._folder.glob("*.json"))
        self._read = {path: self._current(path, written) for written, path in there}
        return {digest: quality for _, found in self._read.values() for digest, quality in found.items()}

    def _current(self, path: Path, written: int) -> tuple[int, dict[str, Quality]]:
        known = self._read.get(path)
        return known if known and known[0] == written else (written, dict(_qualities(path)))


REPORTS: web.AppKey[Reports] = web.AppKey("reports", Reports)


async def page(request: web.Request) -> web.Response:
    """Answer with the page."""
    html, style_hash = await asyncio.to_thread(_render, request)
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return web.Response(text=html, content_type="text/html", headers=headers)


def _render(request: web.Request) -> tuple[str, str]:
    app, settings = request.app, request.app[SETTINGS]
    style = data.path("templates/registry.css").read_text(encoding="utf-8")
    entries = [entry for entry in app[STORE].list() if entry.name.host == app[HOST]]
    blobs = {layer.blob for entry in entries for layer in entry.layers}
    insecure = request.scheme == "http"
    pull = "ollama pull --insecure" if insecure else "ollama pull"
    demand = settings.on_demand
    organisations = demand.offers.organisations if demand else ()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(data.path("templates/registry.html.j2").read_text(encoding="utf-8")).render(
        host=request.host,
        style=style,
        models=_models(entries, app[REPORTS].by_manifest(), f"{pull} {request.host}"),
        total=size(sum(blob.size for blob in blobs)),
        writable=settings.token is not None,
        insecure=insecure,
        pull=pull,
        offers=demand.offers.names if demand else (),
        organisations=organisations,
        organisation_names={one: served_name(f"{one}/") for one in organisations},
        version=__version__,
    )
    return html, base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _models(entries: Iterable[Entry], qualities: dict[str, Quality], pull: str) -> list[Model]:
    """Group tags by repository and manifest; a manifest is shown under the tag that says most, "latest" last."""
    by_repository: dict[str, dict[str, list[Entry]]] = {}
    for entry in sorted(entries, key=lambda one: (one.name.repository, one.name.tag == "latest", one.name.tag)):
        by_repository.setdefault(entry.name.repository, {}).setdefault(entry.digest, []).append(entry)
    unknown = Quality("", "", "", "")
    found = []
    for repository, manifests in by_repository.items():
        known = [qualities.get(digest, unknown) for digest in manifests]
        rows = [_row(tags, quality, pull) for tags, quality in zip(manifests.values(), known, strict=True)]
        found.append(Model(repository, next((one.origin for one in known if one.origin), ""), tuple(rows)))
    return found


def _row(tags: list[Entry], quality: Quality, pull: str) -> Row:
    entry = tags[0]
    return Row(
        tag=entry.name.tag,
        others=tuple(other.name.tag for other in tags[1:]),
        size=size(entry.size),
        quantization=quality.recipe or (entry.name.tag if entry.name.tag in quant.recipes() else ""),
        error=quality.error,
        error_of=quality.error_of,
        id=entry.id,
        digest=entry.digest,
        modified=f"{entry.modified:%Y-%m-%d %H:%M}",
        command=f"{pull}/{entry.name.repository}:{entry.name.tag}",
    )


def _qualities(path: Path) -> Iterator[tuple[str, Quality]]:
    """Read a report's files; one that is broken says nothing."""
    try:
        report = reports.load(path)
    except (FormatError, UsageError):
        return
    source = report["source"]
    origin = f"{source['repository']}@{str(source.get('commit'))[:12]}" if source.get("repository") else ""
    for file in report["files"]:
        yield file["manifest"], Quality(file["recipe"], origin, *_worst(file["tensors"]))


def _worst(tensors: Iterable[dict[str, Any]]) -> tuple[str, str]:
    """Return the largest relative error of a file's tensors, and where it is."""
    measured = [(one["error"]["relative"], one) for one in tensors if one.get("error") and one["error"]["relative"]]
    if not measured:
        return "", ""
    relative, worst = max(measured, key=lambda pair: pair[0])
    return f"{100 * relative:.2g} %", f"root mean square of the error over that of the weights, {worst['name']}"
