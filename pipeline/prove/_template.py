"""A checkpoint's chat template with the texts it sees, rendering what an engine is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pipeline.errors import PipelineError
from pipeline.prove.conversations import Inputs
from pipeline.prove.prompt import DEFAULT, Limits, render_chats, variables

Rendered = str | PipelineError


@dataclass(frozen=True)
class Template:
    """The Jinja *source* of a checkpoint, and the one it has for conversations with tools, if another.

    *bos* and *eos* are the texts of these tokens that the template sees; *undefined* are variables that it does not.
    """

    source: str
    tool_source: str | None = None
    bos: str = ""
    eos: str = ""
    undefined: tuple[str, ...] = ()

    def changed(self, change: Callable[[str], str]) -> Template:
        """Make the same with another source."""
        return replace(
            self, source=change(self.source), tool_source=None if self.tool_source is None else change(self.tool_source)
        )

    def without_variable(self, name: str) -> Template:
        """Make the same with *name* undefined."""
        return replace(self, undefined=(*self.undefined, name))

    def speaks_of(self, word: str) -> bool:
        """Tell whether *word* stands in it."""
        return word in self.source or word in (self.tool_source or "")

    def render(self, inputs: Sequence[Inputs], now: datetime, limits: Limits = DEFAULT) -> list[Rendered]:
        """Render each of *inputs* as transformers does; an error of a conversation is its answer.

        Raises as `render_chats`.
        """
        found: dict[int, Rendered] = {}
        for source, with_tools in self._sources():
            chosen = [i for i, one in enumerate(inputs) if with_tools is None or bool(one.tools) == with_tools]
            cases = [self._variables(inputs[i]) for i in chosen]
            if cases:
                found |= dict(zip(chosen, render_chats(source, cases, now=now, limits=limits), strict=True))
        return [found[i] for i in range(len(inputs))]

    def _sources(self) -> Sequence[tuple[str, bool | None]]:
        if self.tool_source is None:
            return ((self.source, None),)
        return ((self.source, False), (self.tool_source, True))

    def _variables(self, inputs: Inputs) -> dict[str, object]:
        made = variables(inputs.messages, bos_token=self.bos, eos_token=self.eos)
        made |= {"tools": inputs.tools, **inputs.variables}
        return {name: value for name, value in made.items() if name not in self.undefined}
