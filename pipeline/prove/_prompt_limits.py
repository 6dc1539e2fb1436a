"""What engines are known to hand otherwise to a chat template: one row for each, with a way to show that it is that.

A row changes what our own rendering is given to what the engine gives, or takes something out of the conversation for
both; only if the texts are then the same, the difference was this limit alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pipeline.prove._template import Template
from pipeline.prove.conversations import Conversation, Inputs, Message, with_text_arguments


@dataclass(frozen=True)
class Case:
    """A template and what it sees; *now* is the time at which the engine was asked.

    *texts* are the engine's texts of BOS and EOS, *engine* is its name.  *reopens* is text with which the engine opens
    a turn where the prompt ends with the text before it.
    """

    template: Template
    inputs: Inputs
    now: datetime
    texts: tuple[str, str]
    engine: str
    reopens: tuple[str, str] | None = None

    def finished(self, text: str) -> str:
        """Give the whole prompt."""
        end, opening = self.reopens or ("", "")
        return text + opening if self.reopens and text.endswith(end) else text

    def saying(self, **variables: Any) -> Case:
        """Make the same with variables that were not said before."""
        return replace(self, inputs=replace(self.inputs, variables={**variables, **self.inputs.variables}))

    def with_messages(self, change: Callable[[Message], Message]) -> Case:
        """Make the same with each message changed."""
        return replace(self, inputs=replace(self.inputs, messages=tuple(map(change, self.inputs.messages))))

    def with_texts(self, change: Callable[[str], Any]) -> Case:
        """Make the same with the text of each message changed."""
        return self.with_messages(lambda m: {**m, "content": change(m["content"])} if "content" in m else m)


@dataclass(frozen=True)
class PromptLimit:
    """One thing that the engine does otherwise.

    *repair* makes our rendering do it too; *avoid* makes a conversation in which it plays no part, for both.  What they
    give back is what they were given where there is nothing to change.
    """

    name: str
    says: str
    repair: Callable[[Case], Case] = lambda case: case
    avoid: Callable[[Conversation], Conversation] = lambda conversation: conversation


# What llama.cpp knows templates by for which it has rules of their own (common/chat.cpp).
_STEPFUN = "You have access to the following functions in JSONSchema format"
_GEMMA_4 = "'<|tool_call>call:'"


def _text_arguments(case: Case) -> Case:
    return case.with_messages(with_text_arguments)


def _dates(case: Case) -> Case:
    if not (case.template.speaks_of("date_string") or case.template.speaks_of("datetime")):
        return case
    return case.saying(date_string=case.now.strftime("%d %b %Y"), datetime=case.now.strftime("%b %d %Y"))


def _kept_thoughts(case: Case) -> Case:
    drops = dict.fromkeys(("clear_thinking", "truncate_history_thinking", "drop_thinking"), False)
    return case.saying(preserve_thinking=True, **drops)


def _own_texts(case: Case) -> Case:
    bos, eos = case.texts
    return replace(case, template=replace(case.template, bos=bos, eos=eos))


def _no_tools(case: Case) -> Case:
    return case if case.inputs.tools else replace(case, template=case.template.without_variable("tools"))


def _typed_content(case: Case) -> Case:
    return case.with_texts(lambda text: [{"type": "text", "text": text}])


def _trimmed(case: Case) -> Case:
    if not case.template.speaks_of(_STEPFUN):
        return case
    return case.with_texts(str.strip)


def _merged_system(case: Case) -> Case:
    first, *rest = case.inputs.messages
    if first["role"] != "system" or not rest:
        return case
    merged = {**rest[0], "content": f"{first['content']}\n{rest[0]['content']}"}
    return replace(case, inputs=replace(case.inputs, messages=(merged, *rest[1:])))


def _folded(case: Case) -> Case:
    """Put results of tools into the turn that called them, and the answer that follows, as Gemma 4's has them."""
    if not case.template.speaks_of(_GEMMA_4):
        return case
    folded: list[dict[str, Any]] = []
    for message in case.inputs.messages:
        last = folded[-1] if folded else {}
        is_open = "tool_calls" in last and not last.get("content")
        if message["role"] == "tool" and is_open:
            results = last.setdefault("tool_responses", [])
            name = last["tool_calls"][len(results)]["function"]["name"]
            results.append({"name": name, "response": _parsed(message["content"])})
        elif message["role"] == "assistant" and is_open and "tool_calls" not in message:
            last["content"] = message["content"]
        else:
            folded.append({k: v for k, v in message.items() if k != "content" or "tool_calls" not in message})
    return replace(case, inputs=replace(case.inputs, messages=tuple(folded)))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _reopened(case: Case) -> Case:
    if not case.template.speaks_of(_GEMMA_4):
        return case
    return replace(case, reopens=("<turn|>\n", "<|turn>model\n"))


def _stripped_thoughts(case: Case) -> Case:
    """Take a thought out of the beginning of each answer before the last question (`filterThinkTags`, routes.go)."""
    if case.engine != "Ollama":
        return case
    last = max((i for i, m in enumerate(case.inputs.messages) if m["role"] == "user"), default=0)
    thought = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
    messages = tuple(
        {**m, "content": thought.sub("", m["content"])} if i < last and m["role"] == "assistant" else m
        for i, m in enumerate(case.inputs.messages)
    )
    return replace(case, inputs=replace(case.inputs, messages=messages))


def _safe_marks(case: Case) -> Case:
    return replace(case, template=case.template.changed(lambda source: re.sub(r"\|\s*safe\b", "", source)))


def _one_type(value: Any) -> Any:
    """Let each thing in a schema have one type."""
    if isinstance(value, Mapping):
        return {k: v[0] if k == "type" and isinstance(v, list | tuple) else _one_type(v) for k, v in value.items()}
    return [_one_type(item) for item in value] if isinstance(value, list | tuple) else value


def _types(conversation: Conversation) -> Conversation:
    return replace(conversation, tools=tuple(_one_type(tool) for tool in conversation.tools))


def _no_lists(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = {k: v for k, v in call["function"]["arguments"].items() if not isinstance(v, list | dict)}
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _lists(conversation: Conversation) -> Conversation:
    return replace(conversation, messages=tuple(map(_no_lists, conversation.messages)))


# In this order they are applied: texts are in parts only when nothing else is done to them.
PROMPT_LIMITS = (
    PromptLimit("text_arguments", "llama.cpp gives the arguments of tool calls as JSON text", _text_arguments),
    PromptLimit("dates", "llama.cpp says today's date where the template has one of its own", _dates),
    PromptLimit(
        "thinking_said",
        "llama.cpp says enable_thinking=true where nobody says anything",
        lambda case: case.saying(enable_thinking=True),
    ),
    PromptLimit(
        "no_thinking_said",
        "llama.cpp says enable_thinking=false where nobody says anything",
        lambda case: case.saying(enable_thinking=False),
    ),
    PromptLimit("kept_thoughts", "llama.cpp tells the template to keep thoughts of earlier turns", _kept_thoughts),
    PromptLimit("own_texts", "llama.cpp has a BOS and an EOS of its own where the model has none", _own_texts),
    PromptLimit("no_tools", "llama.cpp leaves `tools` undefined where there are none", _no_tools),
    PromptLimit("merged_system", "llama.cpp puts a system prompt before the text that follows", _merged_system),
    PromptLimit("folded_results", "llama.cpp puts results of tools into the turn that called them", _folded),
    PromptLimit("reopened_turn", "llama.cpp opens a turn where the template leaves the last one open", _reopened),
    PromptLimit(
        "stripped_thoughts",
        "Ollama takes thoughts out of earlier answers of Qwen 3 and DeepSeek R1",
        _stripped_thoughts,
    ),
    PromptLimit("trimmed", "llama.cpp takes blanks around texts away", _trimmed),
    PromptLimit("safe_marks", "llama.cpp does not escape HTML beside what the template marks as safe", _safe_marks),
    PromptLimit("typed_content", "llama.cpp gives texts in parts", _typed_content),
    PromptLimit("many_types", "llama.cpp's Jinja cannot look for one list in another", avoid=_types),
    PromptLimit("printed_list", "llama.cpp's Jinja prints a list in another way", avoid=_lists),
)
