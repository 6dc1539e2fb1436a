"""The shape of the code itself: layers, doors, sizes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a part may import parts of lower layers only, and never another part of its own.
LAYERS = (
    ("errors", "crash"),
    ("types", "discover", "data", "strict_json", "strict_toml", "units", "patience", "whole"),
    ("views", "machine", "kv_cache"),
    ("store", "runtime"),
    ("source", "checkpoint", "tokenizer", "arch", "quant", "gguf", "modelfile", "publish"),
    ("blueprint", "prove", "measure", "soundness", "provenance", "tuning", "delivery"),
    ("plan",),
    ("encode", "report", "republish", "job", "parts"),
    ("decide", "record", "release", "writing"),
    ("flow", "estimate"),
    ("serve", "progress", "doctor", "chat", "preview", "verify", "inventory", "calibrate"),
    ("pull_back",),
    ("batch",),
    ("commands",),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# One door per outside package: who may import it.
DOORS = {
    "click": {"cli", "commands"},
    "rich": {"progress"},
    "requests": {"publish", "runtime"},
    "huggingface_hub": {"source", "publish"},
    "jinja2": {"modelfile", "prove", "publish", "serve"},
    "aiohttp": {"serve"},
    "sentencepiece": {"tokenizer", "prove"},
    "tokenizers": {"tokenizer", "prove"},
    "llvmlite": {"quant"},
    "ml_dtypes": {"checkpoint", "quant"},
    "dask": {"batch"},
    "distributed": {"batch"},
    "xllamacpp": {"runtime"},
    "torch": set(),
    "transformers": set(),
}

MAX_LINES = 400
MAX_FUNCTION = 60


def _part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    """A module imports lower layers and its own package, nothing beside it or above it."""
    part = _part(path)
    if part == "__init__":
        return
    for name in _imports(path):
        pieces = name.split(".")
        if pieces[0] != "pipeline" or len(pieces) == 1 or pieces[1] in {part, "__version__"}:
            continue
        assert RANK[pieces[1]] < RANK[part], f"{part} imports {pieces[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_outside_packages_have_one_door(path: Path) -> None:
    """Each outside package is imported only where the design puts it."""
    for name in _imports(path):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or _part(path) in doors, f"{_part(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_fit(path: Path) -> None:
    """A file is read in one go, a function fits a screen."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring.count("\n")
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


def test_every_module_imports() -> None:
    """No module of the package fails to import, with warnings as errors."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "pipeline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
