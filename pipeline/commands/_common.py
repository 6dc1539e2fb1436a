"""What several commands share: options, sizes for people, JSON for programs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.units import size

if TYPE_CHECKING:
    from pipeline.progress import Reporter
    from pipeline.store import Name, Store

__all__ = [
    "adapter_option",
    "duration",
    "gguf_path",
    "json_option",
    "pasteable",
    "print_json",
    "published",
    "quant_option",
    "recipes",
    "reporter",
    "requantize_option",
    "size",
    "threads_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A size as llama-gguf-split takes it: 500M and 2G are millions and thousands of millions of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        found = re.fullmatch(r"([1-9][0-9]{0,8})([MG])B?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size: expected a whole number with a unit, such as 500M or 2G", param, ctx)
        return int(found[1]) * {"M": 10**6, "G": 10**9}[found[2].upper()]


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, metavar="N", help="Worker threads; 0 means one for each core."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "numpy", "fast"]),
    default="auto",
    show_default=True,
    help="Who quantizes; fast is compiled and needs the extra `fast`.  The bytes are the same.",
)
quant_option = click.option(
    "--quant",
    metavar="Q[,Q]",
    help="Quantizations; the first is also 'latest'.  Default: what the alias says, else Q4_K_M; a GGUF as it is.",
)
requantize_option = click.option(
    "--requantize", is_flag=True, help="Allow to quantize a GGUF that is quantized already; quality is lost twice."
)

adapter_option = click.option(
    "--adapter",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    metavar="DIR",
    help="Merge the LoRA adapter in DIR (as PEFT saves it) into MODEL.",
)


def reporter(*, quiet: bool = False) -> Reporter:
    """Make the reporter of progress; with --json it keeps quiet."""
    from pipeline.progress import Reporter

    return Reporter(quiet=quiet)


def pasteable(command: str) -> str:
    """Write a command of ours so that it works where this one did: by its path, if it is not the one on PATH."""
    name = "gguf-pipeline"
    if not command.startswith(f"{name} "):
        return command
    own, found = Path(sys.argv[0]), shutil.which(name)
    if own.name != name or (found is not None and Path(found).resolve() == own.resolve()):
        return command
    shown = own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own
    return f"{shown}{command.removeprefix(name)}"


def print_json(value: object) -> None:
    """Print *value* as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def recipes(text: str | None) -> tuple[str, ...]:
    """Split "Q4_K_M,Q8_0" and check each name; a repeated one counts once.  None gives none.

    Raises:
        UsageError: if a name is unknown.
    """
    from pipeline import quant
    from pipeline.errors import UsageError

    if text is None:
        return ()
    given = (part.strip().upper() for part in text.split(",") if part.strip())
    names = tuple(dict.fromkeys(quant.ALIASES.get(name, name) for name in given))
    unknown = [name for name in names if name not in quant.recipes()]
    if unknown or not names:
        raise UsageError(
            f"unknown quantization {', '.join(unknown) or repr(text)}", expected=", ".join(sorted(quant.recipes()))
        )
    return names


def published(ref: str) -> tuple[Store, Name] | None:
    """Take REF as the name of a published model; None where it is a file on disk.

    Raises:
        UsageError: if it is no valid name, or written as the path of a file that is not there.
    """
    from pipeline.errors import UsageError
    from pipeline.store import Store, local_name, local_store_root

    path = Path(ref)
    if path.is_file():
        return None
    if ref.startswith(("/", "./", "../")) or path.suffix in (".gguf", ".json"):
        what = "is no file" if path.exists() else "no such file"
        raise UsageError(what, where=ref, hint="`gguf-pipeline list` shows the published models")
    return Store(local_store_root()), local_name(ref)


def gguf_path(ref: str) -> Path:
    """Find the GGUF that REF means: a file, or the one of a published model.

    Raises:
        UsageError: if there is neither.
    """
    found = published(ref)
    if found is None:
        return Path(ref)
    store, name = found
    return store.model_path(name)


def duration(seconds: float) -> str:
    """Write a time for people: 0.4 s, 12 s, 3 min, 1.5 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
