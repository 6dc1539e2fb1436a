"""The form of an architecture: literals that say which keys and tensors a GGUF of it has.

A row names whole tensor names, `{bid}` standing for the block number; nothing is found by substring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.arch._config import ModelConfig
from pipeline.arch._steps import Step
from pipeline.types import KV, View
from pipeline.views import Joined

Getter = Callable[[ModelConfig], Any]
KeyMaker = Callable[[str, Any], KV]
Blocks = Callable[[ModelConfig], Iterable[int]]


@dataclass(frozen=True)
class Key:
    """One metadata key `<arch>.<name>`: made by *make* from what *get* finds; left out where that is None."""

    name: str
    get: Getter
    make: KeyMaker


def every_block(config: ModelConfig) -> Iterable[int]:
    """Name all blocks."""
    return range(config.n_layers)


def stacked(_config: ModelConfig, views: Sequence[View]) -> View:
    """Put tensors of one shape, such as the experts of a block, into one with a new first dimension."""
    return Joined(tuple(views), (len(views), *views[0].shape))


@dataclass(frozen=True)
class Row:
    """One rule from source tensors to an output tensor.

    A *source* pattern is a whole name.  `{bid}` stands for the block; *blocks* names those that have the row.  `{xid}`
    stands for the expert: all experts of a block are merged.  Several patterns give one tensor too, in their order.
    *merge* makes one view of several; *steps* follow one after the other.  An *optional* row may find nothing.
    Rows may share a source: each gets its part of a fused tensor.  Rows that share a target are alternatives, such as
    experts one by one or all in one: the first one whose sources are there gives it.
    """

    source: str | tuple[str, ...]
    target: str
    steps: tuple[Step, ...] = ()
    merge: Callable[[ModelConfig, Sequence[View]], View] = stacked
    blocks: Blocks = every_block
    optional: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """The source patterns."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class Literal:
    """A small float32 tensor that is computed from config.json, such as rope_freqs.weight."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Arch:
    """One family of checkpoints.

    *name* is ours and unique; *gguf* is `general.architecture`.  *classes* are the names in config.json's
    `architectures`.  *prefix* may stand before any source name; *spellings* are old ends of names and their new ones.
    *drop* lists source names that carry nothing the engine needs.  *expect* gives, for config keys that change the
    computation, the values the engine implements; *ropes* the kinds of rotary scaling it does.  *defaults* are
    transformers' own for keys that config.json may leave out.  *notes* adds warnings; *literals* computed tensors;
    *example* is a small config.json of the family.
    """

    name: str
    gguf: str
    classes: tuple[str, ...]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    example: Mapping[str, Any]
    prefix: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    literals: Callable[[ModelConfig], tuple[Literal, ...]] = lambda _config: ()
    notes: Callable[[ModelConfig], tuple[str, ...]] = lambda _config: ()


@cache
def pattern(name: str) -> re.Pattern[str]:
    """Compile a row's source name; `{bid}` and `{xid}` match numbers without leading zeros."""
    text = re.escape(name)
    for place in ("bid", "xid"):
        text = text.replace(rf"\{{{place}\}}", rf"(?P<{place}>0|[1-9][0-9]{{0,4}})")
    return re.compile(text)
