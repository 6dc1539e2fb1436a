"""Names of whole files' types, `enum llama_ftype`, as they stand in general.file_type and in the names of files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.gguf._constants import LlamaFileType

_GUESSED = 1024  # "not specified in the model file"


def _names() -> dict[int, str]:
    names = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType if t != _GUESSED}
    names.setdefault(41, "Q2_0")  # the package's release lacks it
    return names


FILE_TYPES: Mapping[int, str] = MappingProxyType(_names())
