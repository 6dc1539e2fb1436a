"""Results as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._common import duration, pasteable, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.prove import Comparison
    from pipeline.report import PublishedFile, Report
    from pipeline.types import Check

_MANY = 12
_MARKS = {"proven": "ok", "not checked": "--", "different": "!!"}


def report(made: Report) -> None:
    """Print what was published where, what was proven, and the commands to paste."""
    for item in made.files:
        click.echo(f"{item.name}  {size(item.size)}  {item.digest}")
        click.echo(f"  {_worst(item, made)}")
    if len(made.targets) > 1:
        for one in made.targets:
            click.echo(f"  {one.state}: {one.target}" + (f" ({one.error})" if one.error else ""))
    if made.is_unchanged:
        click.echo("\nunchanged: nothing was done (--again makes it all the same)")
    else:
        click.echo("")
        checks(made.checks)
    click.echo(f"\nreport: {made.path}")
    click.echo("\nNow paste:\n")
    for command in made.commands:
        click.echo(f"    {pasteable(command)}")


def checks(found: Sequence[Check]) -> None:
    """Print what was proven, what was not checked, and what is different."""
    for check in found:
        click.echo(
            f"[{_MARKS[check.state]}] {check.name}: {check.state}" + (f" ({check.detail})" if check.detail else "")
        )
        if check.command:
            click.echo(f"     to check it: {pasteable(check.command)}")


def comparison(found: Comparison) -> None:
    """Print how a vocabulary in llama.cpp compares with the checkpoint's own tokenizer."""
    n_equal = found.n_texts - len(found.differences)
    click.echo(f"[ok] equal: {n_equal} of {found.n_texts} texts, cut as by {found.reference}")
    for name, says in found.says.items():
        texts = [difference.name for difference in found.differences if name in difference.limits]
        click.echo(f"[ok] known limit: {says} ({len(texts)}: {_few(texts, '; ')})")
    for one in found.unexplained[:_MANY]:
        click.echo(f"[!!] different: {one.name}: {found.reference} gives {_few(one.expected)}, ours {_few(one.found)}")
    if len(found.unexplained) > _MANY:
        click.echo(f"[!!] and {len(found.unexplained) - _MANY} texts more")


def _few(values: Sequence[object], between: str = ", ") -> str:
    return between.join(map(str, values[:_MANY])) + (" ..." if len(values) > _MANY else "")


def _worst(item: PublishedFile, made: Report) -> str:
    measured = [(t.error.relative, t) for t in item.tensors if t.error and t.error.relative is not None]
    if not measured:
        return "errors were not measured"
    relative, worst = max(measured, key=lambda pair: pair[0])
    rows = f", 1 row of {made.sample_every} measured" if made.errors == "sample" else ""
    return f"largest error: {100 * relative:.2g} % of {worst.name} ({worst.type}){rows}"


def preview(planned: list[dict[str, Any]]) -> None:
    """Print what a publication would write."""
    for one in planned:
        click.echo(f"{one['name']}  {one['recipe']}  {size(one['file_bytes'])}")
        if others := one["tags"][1:]:
            click.echo(f"  also tagged {', '.join(others)}")
        for there in one["targets"]:
            click.echo(f"  would be published to {there['target']}: {_there(there)}")


def _there(one: dict[str, Any]) -> str:
    """Say what a target has of a file already."""
    text = f"{one['blobs_there']} of {len(one['blobs'])} blobs are there, {size(one['bytes_to_send'])} would be written"
    if any(blob["is_there"] is None for blob in one["blobs"]):
        text += " (less if the GGUF of this size that is there is the same)"
    return text + (f"; {' and '.join(one['replaces'])} would be replaced" if one["replaces"] else "")


def plans(described: list[dict[str, Any]]) -> None:
    """Print plans as tables, and what it takes to write all of them in one run."""
    for one in described:
        _plan(one)
    if len(described) > 1:
        all_ = described[0]["together"]
        click.echo(
            f"\ntogether: {size(all_['file_bytes'])}, about {size(all_['memory_bytes'])} of memory and "
            f"{duration(all_['seconds'])} to write all {len(described)} in one run"
        )


def _plan(described: dict[str, Any]) -> None:
    tensors = described["tensors"]
    width = max(len(t["name"]) for t in tensors)
    for t in tensors:
        shape = " x ".join(map(str, t["shape"]))
        click.echo(f"{t['name']:<{width}}  {t['type']:<6} {shape:>16} {size(t['n_bytes']):>11}")
    totals = ", ".join(f"{n} {kind}" for kind, n in described["types"].items())
    click.echo(f"\n{described['recipe']}: {len(tensors)} tensors ({totals}), {described['parameters']:,} weights")
    for line in described["tuning"]:
        click.echo(f"changed: {line}")
    bits = f"{described['bits_per_weight']:.2f} bits per weight"
    click.echo(f"file:    {described['file_bytes']:,} bytes ({size(described['file_bytes'])}), {bits}")
    click.echo(f"disk:    {size(described['file_bytes'])} needed, {size(described['disk_free'])} free")
    click.echo(f"memory:  about {size(described['memory_bytes'])} to write it, {size(described['memory_free'])} free")
    click.echo(f"time:    about {duration(described['seconds'])} to write it, if this machine does nothing else")
    _running(described)
    dropped = described["dropped"]
    if dropped["tensors"]:
        more = " ..." if dropped["tensors"] > len(dropped["names"]) else ""
        click.echo(
            f"dropped: {dropped['tensors']} tensors of the checkpoint ({size(dropped['bytes'])}): "
            f"{', '.join(dropped['names'])}{more}"
        )
    for note in described["notes"]:
        click.echo(f"note:    {note}")


def _running(described: dict[str, Any]) -> None:
    if described["run_bytes"] is None:
        click.echo("to run:  the header does not tell how much memory the context takes")
        return
    text = (
        f"to run:  about {size(described['run_bytes'])}, of which {size(described['kv_cache_bytes'])} is the KV cache "
        f"at {described['kv_cache_context']} tokens (f16)"
    )
    if described["run_bytes"] > described["machine_bytes"]:
        text += f"; this machine has {size(described['machine_bytes'])}"
    click.echo(text)


def gguf(described: dict[str, Any], *, tensors: bool) -> None:
    """Print what a GGUF holds."""
    for key, value in described["metadata"].items():
        text = value if not isinstance(value, dict) else f"{value['length']} x {value['array']}: {value['first']} ..."
        line = str(text).replace("\n", "\\n")
        click.echo(f"{key} = {line if len(line) <= 100 else line[:97] + '...'}")
    click.echo("")
    for kind, total in described["types"].items():
        click.echo(
            f"{kind:<8} {total['tensors']:>5} tensors {total['parameters']:>15,} weights {size(total['bytes']):>11}"
        )
    bits = described["bits_per_weight"]
    click.echo(
        f"\nGGUF version {described['version']}, {described['file_bytes']:,} bytes"
        + (f", {bits:.2f} bits per weight" if bits else "")
    )
    if tensors:
        click.echo("")
        for t in described["tensors"]:
            shape = " x ".join(map(str, t["shape"]))
            click.echo(f"{t['name']:<40} {t['type']:<6} {shape:>18} at {t['offset']:,}, {t['n_bytes']:,} bytes")
