"""A checkpoint in a local folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.types import Source


def open_folder(path: Path) -> Source:
    """Take *path*, a folder with a config.json, as a model called like the folder.

    Raises:
        InputError: if it is not there, not a folder, or holds no config.json.
    """
    if not path.exists():
        raise InputError("is not there", where=path, expected="a folder with config.json and *.safetensors")
    if not path.is_dir():
        raise InputError(
            "is a file, neither a checkpoint folder nor a GGUF", where=path, hint="name the folder that it is in"
        )
    folder = path.resolve()
    if not (folder / "config.json").is_file():
        below = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f"did you mean {path / below[0]}?" if below else "name the folder that holds the checkpoint"
        raise InputError("holds no config.json", where=path, hint=hint)
    return Source(name=folder.name or "model", folder=folder)
