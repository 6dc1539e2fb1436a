"""The proof `quick`: read back, open, load, decode, compare tokens and prompts.  Nothing is built for it.

It looks at the files before they get their names, so what is not proven right never replaces what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import PipelineError, ProofError
from pipeline.gguf import GgufFile, read_gguf
from pipeline.prove._runs import Item, Prompting, runs
from pipeline.store import hash_file
from pipeline.types import Blob, Check

LEVELS = ("none", "quick", "full")  # the last pulls back, after the publication; here it is as quick


def files(
    level: str, items: Sequence[tuple[str, Path, Blob]], prompting: Prompting, log: Callable[[str], None]
) -> tuple[Check, ...]:
    """Prove GGUF files that are about to be published.

    Args:
        level: one of LEVELS.
        items: recipe, file, and what the file's content must be.
        prompting: how the checkpoint prompts.
        log: told what is being checked.
    """
    if level == "none":
        return (Check("proof", "not checked", "it was not asked for", "gguf-pipeline publish ... --proof quick"),)
    log("proving what was written")
    checks: list[Check] = []
    whole: list[Item] = []
    for recipe, path, blob in items:
        opened, check = _opens(recipe, path)
        checks += (_content(recipe, path, blob), check)
        if opened is not None:
            whole.append(Item(recipe, path, blob, opened.metadata))
    return (*checks, *runs(whole, prompting))


def refuse_differences(name: str, checks: Sequence[Check]) -> None:
    """Stop where a check found something else than was meant.

    Raises:
        ProofError: naming every such check.
    """
    different = [check for check in checks if check.state == "different"]
    if different:
        raise ProofError(
            "what was made is not what was meant, so it is not published",
            where=name,
            found="; ".join(f"{check.name}: {check.detail}" for check in different),
            hint="if config.json, the template and the disk are sound, this is a bug: tell us. --force publishes",
        )


def _content(recipe: str, path: Path, blob: Blob) -> Check:
    """Read a file back from the disk and hash it."""
    found = hash_file(path)
    if found != blob:
        return Check(
            f"{recipe} blob", "different", f"{blob.digest} expected, {found.digest} ({found.size} bytes) found"
        )
    return Check(f"{recipe} blob", "proven", f"{found.size:,} bytes read back")


def _opens(recipe: str, path: Path) -> tuple[GgufFile | None, Check]:
    """Open the GGUF with the strict reader."""
    try:
        file = read_gguf(path)
    except PipelineError as error:
        return None, Check(f"{recipe} file", "different", str(error))
    return file, Check(f"{recipe} file", "proven", f"{len(file.tensors)} tensors, {len(file.metadata)} keys")
