"""The conversations that prompts are compared on, and what Ollama makes of a conversation before a template sees it.

Messages are as transformers takes them: arguments of tool calls are objects, earlier thoughts are `reasoning_content`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.store import gojson

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

TOOLS, THINKING = "tools", "thinking"


@dataclass(frozen=True)
class Conversation:
    """What is asked: *thinking* is whether the model shall think, None where nobody says."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The abilities without which Ollama refuses it."""
        return frozenset([TOOLS] * bool(self.tools) + [THINKING] * (self.thinking is not None))

    @property
    def is_plain(self) -> bool:
        """Whether a Go template can say it: texts without blanks around them, and question and answer in turn."""
        roles = [message["role"] for message in self.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        in_turn = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
        texts = [message["content"] for message in self.messages]
        return in_turn and not self.needs and all(text and text == text.strip() for text in texts)


@dataclass(frozen=True)
class Setting:
    """What a publication says before every conversation: its system prompt, and messages of (role, content)."""

    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()

    def around(self, conversation: Conversation) -> Conversation:
        """Make what Ollama makes of a conversation in this setting (`ChatHandler`, server/routes.go).

        The system prompt goes before all, unless the conversation brings one.
        """
        has_own = conversation.messages[0]["role"] == "system"
        first = (_system(self.system),) if self.system and not has_own else ()
        said = tuple({"role": role, "content": content} for role, content in self.messages)
        return replace(conversation, messages=(*first, *said, *conversation.messages))


BARE = Setting()


@dataclass(frozen=True)
class Inputs:
    """What a chat template sees: *variables* are those beside messages, tools and the texts of BOS and EOS.

    *tools* is None where there are none, as transformers gives it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def abilities(template: str) -> frozenset[str]:
    """Tell which of tools and thinking Ollama finds in a chat template.

    Follows `chatTemplateHasToolSupport` (server/images.go) and `TemplateSupportsThinking` (thinking/template.go).
    """
    found = set()
    if "tools" in template or "tool_call" in template:
        found.add(TOOLS)
    splits = "content.split('</think>')" in template or 'content.split("</think>")' in template
    says_nothing_else = "reasoning_content" not in template and "<SPECIAL_12>" not in template
    if ("<think>" in template and "</think>" in template) or (splits and says_nothing_else):
        found.add(THINKING)
    return frozenset(found)


def handed_on(conversation: Conversation, able: frozenset[str]) -> Inputs:
    """Make what the template of a model that is *able* to do so much sees of a conversation with Ollama.

    Tools and arguments come out of Go's structs and maps, thoughts of earlier turns are left out, and a model that can
    think is told to unless somebody says otherwise (`llamaServerChatRequest` in llm/llama_server.go, api/types.go).
    """
    thinking = True if conversation.thinking is None and THINKING in able else conversation.thinking
    return Inputs(
        tuple(_message(message) for message in conversation.messages),
        tuple(_tool(tool) for tool in conversation.tools) or None,
        {} if thinking is None else {"enable_thinking": thinking},
    )


def server_request(inputs: Inputs) -> dict[str, Any]:
    """Write *inputs* as Ollama does for llama.cpp's server: arguments as JSON text, variables apart."""
    request: dict[str, Any] = {"messages": [with_text_arguments(message) for message in inputs.messages]}
    if inputs.tools:
        request["tools"] = list(inputs.tools)
    if inputs.variables:
        request["chat_template_kwargs"] = dict(inputs.variables)
    return request


def ollama_request(conversation: Conversation) -> dict[str, Any]:
    """Write a conversation as a client of Ollama's /api/chat does."""
    names = {"reasoning_content": "thinking", "name": "tool_name"}
    messages = [{names.get(key, key): value for key, value in m.items()} for m in conversation.messages]
    request: dict[str, Any] = {"messages": messages}
    if conversation.tools:
        request["tools"] = list(conversation.tools)
    if conversation.thinking is not None:
        request["think"] = conversation.thinking
    return request


def with_text_arguments(message: Message) -> Message:
    """Write the arguments of tool calls as JSON text, as Go writes it."""
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_call(call, _json_text) for call in message["tool_calls"]]}


def _json_text(value: Any) -> str:
    return gojson.encode(value).decode()


def _call(call: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": arguments(function["arguments"])}}


def _message(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    if "tool_calls" in kept:
        kept["tool_calls"] = [_call(call, _ordered) for call in kept["tool_calls"]]
    return kept


def _ordered(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the order of the first level, as Go's ordered map does; what is in it are plain maps."""
    return {key: _plain(value) for key, value in arguments.items()}


def _plain(value: Any) -> Any:
    """Take a value through Go's `any`: keys sorted, whole numbers without a fraction."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


def _tool(tool: Tool) -> Tool:
    """Keep what `ToolFunction` and its parts have, in their order; llama.cpp then drops what stands beside."""
    function = tool["function"]
    parameters = function.get("parameters") or {}
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description", ""),
            "parameters": {
                "type": parameters.get("type", ""),
                **_kept(parameters, {"$defs": _plain, "items": _plain, "required": list}),
                "properties": _properties(parameters.get("properties")),
            },
        },
    }


def _properties(properties: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if properties is None else {name: _property(one) for name, one in properties.items()}


def _property(one: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {
        "anyOf": lambda choices: [_property(choice) for choice in choices],
        "type": lambda kind: kind[0] if isinstance(kind, list) and len(kind) == 1 else kind,
        "items": _plain,
        "description": str,
        "enum": _plain,
        "properties": _properties,
        "required": list,
    }
    return _kept(one, kinds)


def _kept(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the keys that a struct of Go's has, in its order, without those that are empty."""
    return {key: make(values[key]) for key, make in kinds.items() if values.get(key) not in (None, "", [], ())}


def _said(*turns: str) -> tuple[Message, ...]:
    """Make messages of user and assistant in turn."""
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _calls(*calls: tuple[str, str, Mapping[str, Any]], text: str = "") -> Message:
    """Make a turn of the assistant that calls tools: id, name and arguments each."""
    made = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for number, name, arguments in calls
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def _result(number: str, name: str, text: str) -> Message:
    return {"role": "tool", "content": text, "name": name, "tool_call_id": number}


# Keys in another order than Go's, some that Go drops, whole numbers with a fraction, and text beyond ASCII.
_WEATHER: Tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tell the weather, such as "sunny" & 21 °C.',
        "strict": True,
        "parameters": {
            "properties": {
                "town": {"description": "Its name, <b>not</b> its number", "type": "string"},
                "unit": {"enum": ["celsius", "fahrenheit"], "type": "string", "default": "celsius"},
                "days": {"type": "integer", "minimum": 1.0},
                "at": {"type": "array", "items": {"type": "number", "description": "hour"}},
            },
            "required": ["town"],
            "additionalProperties": False,
            "type": "object",
        },
    },
}
_CLOCK: Tool = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": ["string", "null"]}}},
    },
}
_BOTH = (_WEATHER, _CLOCK)
# Ids of nine letters and digits: Mistral's templates take no others.
_CALL = _calls(("call00001", "get_weather", {"town": "Zürich", "days": 2.0, "at": [6, 18.5]}))
_ANSWER = _result("call00001", "get_weather", '{"sky": "sunny", "degrees": 21.5}')
_ASK: Message = {"role": "user", "content": "How is the weather in Zürich?"}
_THOUGHT: Message = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two\nmake four."}

CONVERSATIONS = (
    Conversation("one question", _said("Hello!")),
    Conversation("a system prompt", (_system("Be brief."), *_said("Hello!\nHow are you?"))),
    Conversation("an empty system prompt", (_system(""), *_said("Hello!"))),
    Conversation("several turns", _said("Hi", "Hello.", "What is 2 + 2?", "Four.", "And 3 + 3?")),
    Conversation("a system prompt and turns", (_system("Be\nbrief."), *_said("Hi", "Hello.", "Why?"))),
    Conversation("blanks around texts", (_system(" Be brief. \n"), *_said("  Hi \n", "\n Hello.  ", " Why?\t\n\n"))),
    Conversation("an empty message", _said("", "", "Why?")),
    Conversation("two questions in a row", (*_said("Hi"), *_said("Are you there?"))),
    Conversation("two answers in a row", (*_said("Hi", "Hello."), _said("", "I am here.")[1], *_said("Why?"))),
    Conversation(
        "beyond ASCII", (_system("Antworte höflich."), *_said("Wie heißt du? 你好 🦙 नमस्ते", "ابجد", "İi\u00a0ß?"))
    ),
    Conversation("quotes and braces", _said("{{ x }} {% if y %} \"a\" 'b' \\n & <b> `c` $d {# e #}", "\\", "{}")),
    Conversation(
        "special tokens in a text",
        _said("Say <|im_end|>, </s>, [INST], <|eot_id|> and <think>why?</think> now", "<end_of_turn> so", "<bos>?"),
    ),
    Conversation("tools", (_ASK,), _BOTH),
    Conversation("tools and a system prompt", (_system("Be brief."), _ASK), _BOTH),
    Conversation("a tool call", (_ASK, _CALL, _ANSWER), _BOTH),
    Conversation(
        "a tool call and an answer",
        (_system("Be brief."), _ASK, _CALL, _ANSWER, *_said("", "It is sunny.", "Thanks. And tomorrow?")[1:]),
        _BOTH,
    ),
    Conversation(
        "two tool calls at once",
        (
            _ASK,
            _calls(("call00001", "get_weather", {"town": "Bern"}), ("call00002", "clock", {}), text="Let me look."),
            _result("call00001", "get_weather", "rain"),
            _result("call00002", "clock", "12:00"),
        ),
        _BOTH,
    ),
    Conversation("thinking", _said("Why is the sky blue?"), thinking=True),
    Conversation("not thinking", _said("Why is the sky blue?"), thinking=False),
    Conversation("thinking after a thought", (*_said("2 + 2?"), _THOUGHT, *_said("And 3 + 3?")), thinking=True),
    Conversation("a thought in a text", _said("2 + 2?", "<think>\nEasy.\n</think>\n\nFour.", "And 3 + 3?")),
    Conversation("tools and thinking", (_ASK, _CALL, _ANSWER), _BOTH, thinking=True),
    Conversation("tools without thinking", (_system("Be brief."), _ASK), _BOTH, thinking=False),
)


def askable(able: frozenset[str]) -> Sequence[Conversation]:
    """Give the conversations that Ollama lets one have with a model that is *able* to do so much."""
    return [conversation for conversation in CONVERSATIONS if conversation.needs <= able]
