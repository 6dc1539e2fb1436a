"""Prompts to compare with those of an engine that is asked later, one that can not be asked before a publication."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pipeline.errors import PipelineError
from pipeline.prove._runs import Prompting
from pipeline.prove.conversations import Conversation, Message, abilities, handed_on

# What Ollama's older templates can say as well: turns that alternate, one system prompt in front.
_PLAIN = (
    Conversation("one question", ({"role": "user", "content": "Hello!"},)),
    Conversation(
        "a system prompt",
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!\nHow are you?"}),
    ),
    Conversation(
        "several turns",
        (
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Wie heißt du? 你好"},
        ),
    ),
)


class ExpectedPrompt(NamedTuple):
    """A conversation, and the *text* that the checkpoint's own template renders of it, without a leading *bos*."""

    messages: tuple[Message, ...]
    text: str
    bos: str


def expected_prompts(prompting: Prompting) -> tuple[ExpectedPrompt, ...]:
    """Render plain conversations; none where there is no template, and without those that it refuses.

    Raises:
        PipelineError: if the template can not be rendered at all.
    """
    template = prompting.template
    if template is None:
        return ()
    able = abilities(template.source)
    texts = template.render([handed_on(one, able) for one in _PLAIN], datetime.now())
    return tuple(
        ExpectedPrompt(one.messages, text.removeprefix(template.bos), template.bos)
        for one, text in zip(_PLAIN, texts, strict=True)
        if not isinstance(text, PipelineError)
    )
