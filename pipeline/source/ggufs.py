"""A GGUF file as the model: it says itself what it is."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import InputError
from pipeline.types import Source

SUFFIX = ".gguf"
# How files name their type, behind the model's name: "-Q4_K_M", ".IQ4_XS", "-UD-Q4_K_XL", "-f16".
_TYPE = re.compile(r"[-._](?:UD[-_])?(?:I?Q\d\w*|TQ\d\w*|(?:MX|NV)FP4\w*|BF16|FP?(?:16|32))", re.IGNORECASE)

_PART = re.compile(r"-[0-9]{5}-of-[0-9]{5}\Z")


def open_gguf(path: Path) -> Source:
    """Take the GGUF file *path* as a model called like the file, without part and type at the end of its name.

    Raises:
        InputError: if there is no such file.
    """
    if not path.is_file():
        raise InputError("is not there" if not path.exists() else "is no file", where=path, expected="a GGUF file")
    path = path.resolve()
    stem = _PART.sub("", path.name[: -len(SUFFIX)])
    end = _TYPE.search(stem)
    while end and end.end() != len(stem):
        end = _TYPE.search(stem, end.start() + 1)
    return Source(name=(stem[: end.start()] if end else stem) or "model", folder=path.parent, gguf=path)
