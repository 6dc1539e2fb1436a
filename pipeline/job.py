"""What the flow is asked, and what it knows of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import blueprint as blueprints
from pipeline import modelfile as modelfiles
from pipeline.source import OpenSource
from pipeline.tokenizer import Tokenizer
from pipeline.tuning import Tuning
from pipeline.types import Source, SourceTensor


@dataclass(frozen=True)
class Job:
    """What to publish, and where.

    *quants* are recipe names, the first is also tagged "latest"; none means a GGUF as it is, and for a checkpoint what
    its alias says.  *requantize* allows to start from quantized weights; *adapter* is the folder of a LoRA adapter to
    merge.  *name* is "model" or "namespace/model"; without it the alias or the repository names the model.  *errors*
    says which rows are compared with the source (a name in measure.LEVELS).  *tuning* changes the recipes.
    """

    model: str
    quants: tuple[str, ...]
    target: str = "local"
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


@dataclass(frozen=True)
class Prepared:
    """A model whose headers are read: everything but the weights, which may still be on their way.

    *tensors* are those of the checkpoint, by name; none where the model is a GGUF.
    """

    opened: OpenSource
    tokenizer: Tokenizer
    blueprint: blueprints.Blueprint
    generation_config: Mapping[str, Any]
    licenses: tuple[str, ...]
    tensors: Mapping[str, SourceTensor] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        """Where the model is from."""
        return self.opened.source
