"""The form of an architecture: literals that say which keys and tensors a GGUF of it has.

A row names whole tensor names, `{bid}` standing for the block number; nothing is found by substring.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.arch._config import ModelConfig
from pipeline.arch._ops import OpFactory
from pipeline.types import KV

Getter = Callable[[ModelConfig], Any]
KeyMaker = Callable[[str, Any], KV]


@dataclass(frozen=True)
class Key:
    """One metadata key `<arch>.<name>`: made by *make* from what *get* finds; left out where that is None."""

    name: str
    get: Getter
    make: KeyMaker


@dataclass(frozen=True)
class Row:
    """One rule from source tensor to output tensor.

    An *optional* row may find nothing.  A row with `{bid}` stands for every block.
    """

    source: str
    target: str
    ops: tuple[OpFactory, ...] = ()
    optional: bool = False

    @property
    def per_block(self) -> bool:
        """Whether the row stands for one tensor in each block."""
        return "{bid}" in self.source


@dataclass(frozen=True)
class Literal:
    """A small float32 tensor that is computed from config.json, such as rope_freqs.weight."""

    name: str
    values: tuple[float, ...]

    @property
    def data(self) -> bytes:
        """The values as little-endian float32."""
        return struct.pack(f"<{len(self.values)}f", *self.values)


@dataclass(frozen=True)
class Arch:
    """One family of checkpoints.

    *name* is ours and unique; *gguf* is `general.architecture`.  *classes* are the names in config.json's
    `architectures`.  *drop* lists source names that carry nothing the engine needs.  *expect* gives, for config keys
    that change the computation, the values the engine implements; *ropes* the kinds of rotary scaling it does.
    *notes* adds warnings; *literals* computed tensors; *example* is a small config.json of the family.
    """

    name: str
    gguf: str
    classes: tuple[str, ...]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    example: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    expect: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    literals: Callable[[ModelConfig], tuple[Literal, ...]] = lambda _config: ()
    notes: Callable[[ModelConfig], tuple[str, ...]] = lambda _config: ()


@cache
def pattern(name: str) -> re.Pattern[str]:
    """Compile a row's source name; `{bid}` matches a block number without leading zeros."""
    return re.compile(re.escape(name).replace(r"\{bid\}", r"(?P<bid>0|[1-9][0-9]{0,4})"))
