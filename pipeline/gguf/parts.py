"""A model in several files, as llama.cpp splits it: which files there are, and that they belong together.

Names are those of `llama_split_path` (llama.cpp): `model-00001-of-00003.gguf`.  The first part has the whole metadata,
every part has the three `split.` keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import FormatError, InputError
from pipeline.gguf.reader import GgufFile, read_gguf

PART_KEYS = ("split.no", "split.count", "split.tensors.count")
MAX_PARTS = 65535  # split.count has 16 bits

_NAME = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Name the *count* parts of the model that would be *path* in one file."""
    stem = path.name.removesuffix(".gguf")
    return tuple(path.with_name(f"{stem}-{no:05d}-of-{count:05d}.gguf") for no in range(1, count + 1))


def whole_name(path: Path) -> str:
    """Give the name that a part's model would have in one file; another file's name stays."""
    found = _NAME.fullmatch(path.name)
    return f"{found['stem']}.gguf" if found else path.name


def read_parts(path: Path) -> tuple[GgufFile, ...]:
    """Read the headers of all parts of the model that *path* is a part of, in order; of an undivided model, the one.

    Raises:
        FormatError: if a file is not a valid GGUF file, or the parts do not belong together.
        InputError: if a part is not there.
    """
    file = read_gguf(path)
    if file.split is None:
        return (file,)
    named = _NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != file.split.count:
        raise FormatError(
            "the name of a part of a split model does not lead to the others",
            where=path,
            expected=part_paths(path, file.split.count)[file.split.no].name,
            found=path.name,
            hint="give the files the names that they had",
        )
    paths = part_paths(path.with_name(whole_name(path)), file.split.count)
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise InputError(
            "a part of the split model is missing",
            where=path.parent / missing[0],
            expected=f"{len(paths)} parts",
            found=f"{len(paths) - len(missing)} parts",
            hint="put all parts into one folder",
        )
    parts = tuple(file if p.name == path.name else read_gguf(p) for p in paths)
    _check_together(parts)
    return parts


def _check_together(parts: Sequence[GgufFile]) -> None:
    first = parts[0]
    seen: set[str] = set()
    for no, part in enumerate(parts):
        split = part.split
        if split is None or (split.no, split.count) != (no, len(parts)):
            found = "an undivided model" if split is None else f"part {split.no + 1} of {split.count}"
            raise FormatError(
                "the file is not the part that its name says",
                where=part.path,
                expected=f"part {no + 1} of {len(parts)}",
                found=found,
            )
        if first.split and split.n_tensors != first.split.n_tensors:
            raise FormatError(
                "the parts are of two models",
                where=part.path,
                expected=f"split.tensors.count {first.split.n_tensors}, as in {first.path.name}",
                found=split.n_tensors,
            )
        for tensor in part.tensors:
            if tensor.name in seen:
                raise FormatError("two parts have the same tensor", where=part.path, found=tensor.name)
            seen.add(tensor.name)
    if first.split and first.split.n_tensors not in (None, len(seen)):
        raise FormatError(
            "the parts do not have all tensors",
            where=first.path,
            expected=f"{first.split.n_tensors} tensors",
            found=f"{len(seen)} in {len(parts)} parts",
        )
