"""The plug-in table: one module, one thing.

A plug-in package holds one module for each thing it offers; every module not starting with an underscore defines the
same attribute.  `load` imports them all and refuses duplicates; an ImportError is never swallowed.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pipeline.errors import PipelineError


def modules(package: str) -> dict[str, ModuleType]:
    """Import every public module of *package*; keys are their short names, in alphabetic order."""
    parent = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(parent.__path__) if not m.name.startswith("_") and not m.ispkg)
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


def load(package: str, attribute: str, key: str = "name") -> dict[str, Any]:
    """Collect *attribute* of every public module of *package*, by the *key* attribute of each.

    Raises:
        PipelineError: if a module has no such attribute, or two modules claim one key.
    """
    table: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for short, module in modules(package).items():
        if not hasattr(module, attribute):
            raise PipelineError(f"plug-in module defines no {attribute}", where=f"{package}.{short}")
        thing = getattr(module, attribute)
        name = getattr(thing, key)
        if name in table:
            raise PipelineError(
                f"two plug-ins are called {name!r}", where=f"{package}.{short}", found=f"{package}.{owner[name]}"
            )
        table[name], owner[name] = thing, short
    return table
