"""The form of an architecture: literals that say which keys and tensors a GGUF of it has.

A row names whole tensor names, `{bid}` standing for the block number; nothing is found by substring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.arch._config import ModelConfig
from pipeline.arch._steps import Step
from pipeline.errors import FormatError
from pipeline.types import KV, Shape, View
from pipeline.views import Joined

Getter = Callable[[ModelConfig], Any]
KeyMaker = Callable[[str, Any], KV]
Blocks = Callable[[ModelConfig], Sequence[int]]
Allowed = tuple[Any, ...] | Callable[[ModelConfig], tuple[Any, ...]]


@dataclass(frozen=True)
class Key:
    """One metadata key `<arch>.<name>`: made by *make* from what *get* finds; left out where that is None.

    A *name* that begins with "tokenizer." stands alone.
    """

    name: str
    get: Getter
    make: KeyMaker


def every_block(config: ModelConfig) -> Sequence[int]:
    """Name all blocks."""
    return range(config.n_layers)


def stacked(_config: ModelConfig, views: Sequence[View]) -> View:
    """Put tensors of one shape, such as the experts of a block, into one with a new first dimension."""
    for view in views:
        if view.shape != views[0].shape:
            raise FormatError(
                f"{view.sources[0].name} has another shape than its siblings",
                expected=views[0].shape,
                found=view.shape,
            )
    return Joined(tuple(views), (len(views), *views[0].shape))


@dataclass(frozen=True)
class Row:
    """One rule from source tensors to an output tensor.

    A *source* pattern is a whole name.  `{bid}` stands for the block; *blocks* names those that have the row; if none
    has it, a row without `{bid}` is not there either.  `{xid}`
    stands for the expert: all experts of a block are merged.  Several patterns give one tensor too, in their order.
    *merge* makes one view of several; *steps* follow one after the other.  An *optional* row may find nothing.
    Rows may share a source: each gets its part of a fused tensor.  Rows of one *target* are the layouts in which it is
    published; a checkpoint has one of them.  *shape* tells what config.json makes of the output, row-major.
    """

    source: str | tuple[str, ...]
    target: str
    steps: tuple[Step, ...] = ()
    merge: Callable[[ModelConfig, Sequence[View]], View] = stacked
    blocks: Blocks = every_block
    optional: bool = False
    shape: Callable[[ModelConfig], Shape] | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """The source patterns."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def kind(self) -> str:
        """What the target is within a block, or in the file: "attn_q", "output_norm"."""
        return self.target.split(".")[-2]


@dataclass(frozen=True)
class Literal:
    """A small float32 tensor that is computed from config.json, such as rope_freqs.weight."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Arch:
    """One family of checkpoints.

    *name* is ours and unique; *gguf* is `general.architecture`.  *classes* are the names in config.json's
    `architectures`.  *drop* lists source names that carry nothing the engine needs; *abilities* those that are left out
    with what the model can no longer do, where `{bid}` is a block after the last one.  *scalars* are rows of tensors
    with one number, whose target is the metadata key that has those of all blocks.  *prefixes* pairs beginnings of
    source names with what the rows have instead, *spellings* ends.  *defaults* are settings that config.json may leave
    out.  *expect* gives, for config keys that change the computation, the values the engine implements; *ropes* the
    kinds of rotary scaling it does, *packed* the methods of quantization whose tensors the rows read.  *vocab_multiple*
    is what the embedding's rows may be padded to where config.json does not count the padding.  *notes* adds warnings;
    *literals* computed tensors; *example* is a small config.json of the family.
    """

    name: str
    gguf: str
    classes: tuple[str, ...]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    example: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    abilities: Mapping[str, str] = field(default_factory=dict)
    scalars: tuple[Row, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Allowed] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default", "linear", "yarn", "dynamic")
    packed: tuple[str, ...] = ()
    vocab_multiple: int = 1
    literals: Callable[[ModelConfig], tuple[Literal, ...]] = lambda _config: ()
    notes: Callable[[ModelConfig], tuple[str, ...]] = lambda _config: ()

    def config(self, raw: Mapping[str, Any], pooling: str | None = None) -> ModelConfig:
        """See config.json as the rows do: the text part of a multimodal one over the rest, over the defaults."""
        text = raw.get("text_config")
        said = {**raw, **(text if isinstance(text, dict) else {})}
        return ModelConfig({**said, **{k: v for k, v in self.defaults.items() if said.get(k) is None}}, pooling)


@cache
def pattern(name: str) -> re.Pattern[str]:
    """Compile a source name; `{bid}` and `{xid}` match numbers without leading zeros, `{any}` matches the rest."""
    text = re.escape(name).replace(r"\{any\}", ".+")
    for place in ("bid", "xid"):
        text = text.replace(rf"\{{{place}\}}", rf"(?P<{place}>0|[1-9][0-9]{{0,4}})")
    return re.compile(text)
