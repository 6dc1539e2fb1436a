"""A publication's report as text for people: provenance first, then the tensors that lost most."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands._common import size


def report(values: dict[str, Any], manifest: str | None) -> None:
    """Print a report as `publish` saved it; with *manifest* only the file of that publication."""
    _provenance(values)
    for file in values["files"]:
        if manifest in (None, file.get("manifest")):
            _file(file, values)
    click.echo("")
    for check in values.get("checks", ()):
        click.echo(f"{check['name']}: {check['state']}" + (f" ({check['detail']})" if check.get("detail") else ""))


def _provenance(values: dict[str, Any]) -> None:
    source = values.get("source", {})
    commit = f"{source.get('repository')}@{source.get('commit')}"
    tool = ", ".join(f"{name} {version}" for name, version in values.get("tool", {}).items())
    lines = {
        "model": values.get("model"),
        "source": commit if source.get("repository") else source.get("folder"),
        "written": f"{values.get('written')} by gguf-pipeline {values.get('version')} ({tool})",
        "llama.cpp": values.get("llama_cpp") or "not used",
        "time": ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in values.get("timings", {}).items()),
        "tokenizer": f"{values.get('pre_tokenizer')}, family {values.get('family')}",
    }
    for name, text in lines.items():
        click.echo(f"{name:<10} {text}")
    click.echo("")
    for file in values.get("sources", ()):
        by = "" if file["by"] == "content" else "  (as the cache names it)"
        click.echo(f"{file['sha256']}  {size(file['size']):>9}  {file['name']}{by}")


def _file(file: dict[str, Any], values: dict[str, Any]) -> None:
    click.echo(f"\n{file['name']}  {file['recipe']}  {size(file['size'])}  {file['digest']}")
    for line in file.get("tuning", ()):
        click.echo(f"changed: {line}")
    rows = [row for row in file.get("tensors", ()) if row["error"]]
    if not rows:
        click.echo("errors were not measured")
        return
    if values.get("errors") == "sample":
        click.echo(f"1 row of {values['sample_every']} was compared, small tensors whole")
    width = max(len(row["name"]) for row in rows)
    click.echo(
        f"{'tensor':<{width}}  {'type':<6} {'relative':>9} {'RMSE':>10} {'largest':>10} {'cosine':>11} {'rows':>8}"
    )
    lossy = [row for row in rows if row["error"]["max_abs"]]
    for row in sorted(lossy, key=_badness, reverse=True):
        error = row["error"]
        relative = "-" if error["relative"] is None else f"{100 * error['relative']:.3f} %"
        cosine = "-" if error["cosine"] is None else f"{error['cosine']:.7f}"
        click.echo(
            f"{row['name']:<{width}}  {row['type']:<6} {relative:>9} {error['rmse']:>10.3g} "
            f"{error['max_abs']:>10.3g} {cosine:>11} {error['n_rows']:>8}"
        )
    if len(lossy) < len(rows):
        click.echo(f"{len(rows) - len(lossy)} tensors keep their values")


def _badness(row: dict[str, Any]) -> tuple[float, float]:
    relative = row["error"]["relative"]
    return (float("inf") if relative is None else relative, row["error"]["max_abs"])
