"""What the flow is asked, and what it knows of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import blueprint as blueprints
from pipeline import modelfile as modelfiles
from pipeline import publish, quant
from pipeline.source import OpenSource, aliases
from pipeline.tokenizer import Tokenizer
from pipeline.tuning import Tuning
from pipeline.types import Source, SourceTensor

DEFAULT_QUANT = "Q4_K_M"


@dataclass(frozen=True)
class Job:
    """What to publish, and where.

    *quants* are recipe names; none means a GGUF as it is, and for a checkpoint what its alias says.  Each is a tag; the
    first is also tagged "latest" if *latest* says so.  *tags* are more tags: of the first, or, with "{quant}" in it, of
    each.  Every one of *targets* gets the same files.  With *again*, what is there already is made again.

    *requantize* allows to start from quantized weights; *adapter* is the folder of a LoRA adapter to
    merge.  *name* is "model" or "namespace/model"; without it the alias or the repository names the model.  *errors*
    says which rows are compared with the source (a name in measure.LEVELS), *engine* who quantizes (a name for
    quant.get_engine), *tuning* changes the recipes.  With *force* it is published even if the proof finds a difference.
    """

    model: str
    quants: tuple[str, ...]
    targets: tuple[str, ...] = ("local",)
    name: str | None = None
    proof: str = "quick"
    threads: int = 0
    with_template: bool = False
    templates: Path | None = None
    overrides: modelfiles.Overrides = field(default_factory=modelfiles.Overrides)
    requantize: bool = False
    adapter: Path | None = None
    errors: str = "sample"
    tuning: Tuning = field(default_factory=Tuning)
    tags: tuple[str, ...] = ()
    latest: bool = True
    again: bool = False
    force: bool = False
    engine: str = quant.AUTO

    def tags_of(self, number: int) -> tuple[str, ...]:
        """Return all tags of the file of quantization *number*, its own first."""
        quant = self.quants[number]
        latest = ("latest",) if self.latest and number == 0 else ()
        others = [tag.replace("{quant}", quant) for tag in self.tags if number == 0 or "{quant}" in tag]
        return tuple(dict.fromkeys((quant, *latest, *others)))

    def tags_of_all(self) -> tuple[str, ...]:
        """Return the tags of all files."""
        return tuple(tag for number in range(len(self.quants)) for tag in self.tags_of(number))

    def wishes(self, source: Source) -> modelfiles.Overrides:
        """Return what the Modelfile is to say: the user's wishes over those of the alias.

        Raises:
            UsageError: if the alias's are nothing that Ollama takes.
        """
        row = aliases.load().get(source.alias or "")
        if row is None or not row.modelfile:
            return self.overrides
        where = f"{row.origin}, [{row.name}.modelfile]"
        return self.overrides.over(modelfiles.read_table(row.modelfile, where, row.origin.parent))

    def name_of(self, source: Source) -> tuple[str, str]:
        """Give the namespace and the name to publish under: the user's, else the alias or the repository's name.

        A model with an adapter merged into it is another model, so the alias is not its name.
        """
        return publish.split_name(self.name or (None if source.adapter else source.alias) or source.name)


@dataclass(frozen=True)
class Prepared:
    """A model whose headers are read: everything but the weights, which may still be on their way.

    *tensors* are those of the checkpoint, by name; none where the model is a GGUF.  *max_tokens* is where the makers of
    an embedding model cut a text, in tokens.
    """

    opened: OpenSource
    tokenizer: Tokenizer
    blueprint: blueprints.Blueprint
    generation_config: Mapping[str, Any]
    licenses: tuple[str, ...]
    tensors: Mapping[str, SourceTensor] = field(default_factory=dict)
    max_tokens: int | None = None

    @property
    def source(self) -> Source:
        """Where the model is from."""
        return self.opened.source


def adapted(source: Source, adapter: Path | None) -> Source:
    """Name the model that *source* becomes with *adapter* merged into it."""
    if adapter is None:
        return source
    adapter = adapter.resolve()
    return replace(source, name=f"{source.name}-{adapter.name}", adapter=adapter)


def usual_quant(source: Source) -> str:
    """Give the quantization of a checkpoint where nobody said one: what its alias says, else the default."""
    row = aliases.load().get(source.alias or "")
    return row.quant if row else DEFAULT_QUANT
