"""The constants of the `gguf` package, without what else it loads: readers, writers and tokenizers, for 0.05 s."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.errors import ToolError

if TYPE_CHECKING:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
else:

    def _load() -> ModuleType:
        package = importlib.util.find_spec("gguf")  # which does not run it
        if package is None or not package.submodule_search_locations:
            raise ToolError("the package gguf is not installed", hint="pip install gguf")
        place = Path(package.submodule_search_locations[0]) / "constants.py"
        spec = importlib.util.spec_from_file_location("pipeline.gguf._constants.of_gguf", place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # enumerations look themselves up there
        spec.loader.exec_module(module)
        return module

    _of_gguf = _load()
    GGML_QUANT_SIZES = _of_gguf.GGML_QUANT_SIZES
    GGMLQuantizationType = _of_gguf.GGMLQuantizationType
    LlamaFileType = _of_gguf.LlamaFileType

__all__ = ["GGML_QUANT_SIZES", "GGMLQuantizationType", "LlamaFileType"]
