"""Prompts of llama.cpp beside those of the checkpoint's own template: equal, or different by a limit that is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, UnsupportedError
from pipeline.prove._prompt_limits import PROMPT_LIMITS
from pipeline.prove._reference import open_reference
from pipeline.prove._stub import write_stub
from pipeline.prove._template import Template
from pipeline.prove._tokens import Tokens
from pipeline.prove.conversations import (
    CONVERSATIONS,
    THINKING,
    TOOLS,
    Conversation,
    abilities,
    askable,
    handed_on,
    server_request,
)
from pipeline.prove.prompts import LlamaServer, PromptComparison, compare_prompts, refuses_all, render_all
from pipeline.runtime import ChatSession, open_runtime
from pipeline.tokenizer import read_tokenizer
from pipeline.types import KV, string

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
WITH_TEMPLATE = sorted(path.parent.name for path in FIXTURES.glob("*/chat_template.jinja"))

_TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
_BODY = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
_CALLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}%s{% endfor %}{% endfor %}"
)
_SCHEMA = "{% for t in tools or [] %}{% for p in t.function.parameters.properties.values() %}%s{% endfor %}{% endfor %}"
_GEMMA = "{# '<|tool_call>call:' <|turn> <turn|> #}"

# For each row of the table a template on which it shows.
SHOWN: dict[str, str] = {
    "text_arguments": _CALLS.replace("%s", "{{ c.function.arguments + '' }}"),
    "dates": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    + _TURNS,
    "thinking_said": "{#- OpenAI Chat Completions: #}" + _GEMMA + "{% if enable_thinking %}[on]{% endif %}" + _TURNS,
    "no_thinking_said": "{% if enable_thinking is defined %}[{{ enable_thinking | string | lower }}]{% endif %}"
    + _TURNS,
    "kept_thoughts": "{% if drop_thinking is defined and not drop_thinking %}all{% endif %}" + _TURNS,
    "own_texts": "{{ eos_token }}" + _TURNS,
    "no_tools": "{% if tools is defined %}[tools]{% endif %}" + _TURNS,
    "typed_content": _BODY,
    "merged_system": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + _TURNS,
    "folded_results": _GEMMA
    + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{% endfor %}{% for r in m.tool_responses or [] %}{{ r.name }}={{ r.response | tojson }}{% endfor %}{% endfor %}",
    "reopened_turn": "{#- OpenAI Chat Completions: #}" + _GEMMA + _TURNS + "<turn|>\n\n",
    "trimmed": "{# You have access to the following functions in JSONSchema format #}" + _TURNS,
    "safe_marks": "{% for m in messages %}{{ '<' | safe + m.content }}{% endfor %}",
    "many_types": _TURNS + _SCHEMA.replace("%s", "{% if p.type in ['string'] %}s{% endif %}"),
    "printed_list": _CALLS.replace("%s", "{% for v in c.function.arguments.values() %}[{{ v }}]{% endfor %}"),
}


@pytest.fixture
def serve(llama: Any, vocabulary: tuple[KV, ...], tmp_path: Path) -> Callable[[str], Any]:
    """Run llama.cpp with a chat template of one's own."""
    assert llama

    @contextmanager
    def running(source: str) -> Iterator[ChatSession]:
        write_stub(tmp_path / "stub.gguf", [*vocabulary, string("tokenizer.chat_template", source)])
        with open_runtime(tmp_path / "stub.gguf", n_ctx=64) as session:
            yield session

    return running


def _compare(serve: Callable[[str], Any], source: str, ours: str | None = None) -> PromptComparison:
    template = Template(ours or source, None, "<|endoftext|>", "" if source == SHOWN["own_texts"] else "<|im_end|>")
    with serve(source) as session:
        return compare_prompts(template, LlamaServer(session, abilities(template.source)))


def test_every_limit_is_shown() -> None:
    """The table of templates has one for each limit of llama.cpp; that of Ollama shows in its own tests."""
    assert {limit.name for limit in PROMPT_LIMITS} == SHOWN.keys() | {"stripped_thoughts"}


@pytest.mark.native
@pytest.mark.parametrize("name", SHOWN)
def test_a_limit_shows_and_is_named(serve: Callable[[str], Any], name: str) -> None:
    """llama.cpp renders the template otherwise, for the reason that is found; nothing else is left unexplained."""
    comparison = _compare(serve, SHOWN[name])
    assert name in comparison.limits
    assert comparison.unexplained == ()
    check = comparison.check()
    assert check.state == "proven"
    assert next(limit.says for limit in PROMPT_LIMITS if limit.name == name) in check.detail


@pytest.mark.native
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (_TURNS, _TURNS.replace("m.content", "m.content | trim")),
        (_TURNS, _TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"),
        (_TURNS, _TURNS.replace("<{{", "< {{")),
        (SHOWN["many_types"], _TURNS),
    ],
)
def test_a_wrong_template_is_different(serve: Callable[[str], Any], ours: str, theirs: str) -> None:
    """A file with another template than the checkpoint's is found out, and the first difference is shown."""
    comparison = _compare(serve, theirs, ours)
    check = comparison.check()
    assert check.state == "different"
    first = comparison.unexplained[0]
    assert first.expected != first.found
    assert first.conversation in check.detail
    assert f"at character {first.at}" in check.detail


@pytest.mark.native
def test_what_llama_cpp_cannot_render_is_said(serve: Callable[[str], Any]) -> None:
    """A template that Jinja renders and llama.cpp does not is a difference with llama.cpp's own words."""
    comparison = _compare(serve, _TURNS + "{% if messages | length > 2 %}{{ 'a'.casefold() }}{% endif %}")
    assert {one.kind for one in comparison.unexplained} == {"refused"}
    check = comparison.check()
    assert check.state == "different"
    assert "casefold" in check.detail


@pytest.mark.native
def test_the_clock_makes_no_difference(serve: Callable[[str], Any]) -> None:
    """A template that says the time, to the second, is compared at one and the same time."""
    comparison = _compare(serve, "{{ strftime_now('%d %b %Y %H:%M') }}" + _TURNS)
    assert comparison.differences == ()


@pytest.mark.native
@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_prompts_of_small_checkpoints_are_proven(name: str, llama: Any, tmp_path: Path) -> None:
    """Each small checkpoint prompts as its own template and tokenizer do, text and tokens, but for known limits."""
    assert llama
    tokenizer = read_tokenizer(FIXTURES / name, {})
    assert tokenizer.chat_template is not None
    write_stub(tmp_path / "stub.gguf", tokenizer.metadata)
    template = Template(tokenizer.chat_template, tokenizer.tool_template, tokenizer.bos or "", tokenizer.eos or "")
    with open_runtime(tmp_path / "stub.gguf", n_ctx=64) as session:
        tokens = Tokens(session, {kv.key: kv for kv in tokenizer.metadata}, open_reference(FIXTURES / name))
        comparison = compare_prompts(template, LlamaServer(session, abilities(template.source)), tokens)
    assert comparison.unexplained == ()
    assert comparison.untokenized is None
    assert comparison.n_compared >= 9


@pytest.mark.native
def test_wrong_tokens_are_a_difference(llama: Any, demo: Path, tmp_path: Path) -> None:
    """The same text in other tokens is found, with the index of the first."""
    assert llama
    tokenizer = read_tokenizer(demo, {})
    swapped = []
    for kv in tokenizer.metadata:
        tokens = list(kv.value) if kv.key == "tokenizer.ggml.tokens" else []
        if tokens:
            a, b = tokens.index("e"), tokens.index("l")
            tokens[a], tokens[b] = "l", "e"
        swapped.append(replace(kv, value=tuple(tokens)) if tokens else kv)
    write_stub(tmp_path / "stub.gguf", swapped)
    assert tokenizer.chat_template is not None
    template = Template(tokenizer.chat_template, None, tokenizer.bos or "", tokenizer.eos or "")
    with open_runtime(tmp_path / "stub.gguf", n_ctx=64) as session:
        compared = Tokens(session, {kv.key: kv for kv in swapped}, open_reference(demo))
        comparison = compare_prompts(template, LlamaServer(session, abilities(template.source)), compared)
    first = comparison.unexplained[0]
    assert (first.kind, comparison.check().state) == ("tokens", "different")
    assert first.token is not None
    assert f"token {first.token}" in comparison.check().detail


@pytest.mark.native
def test_a_bos_of_the_engine_is_named(llama: Any, vocabulary: tuple[KV, ...], demo: Path, tmp_path: Path) -> None:
    """A token that llama.cpp puts before a prompt, where the template has none, is a limit with its name."""
    assert llama
    write_stub(tmp_path / "stub.gguf", [*vocabulary, string("tokenizer.chat_template", _TURNS)])
    template = Template(_TURNS, None, "<|endoftext|>", "<|im_end|>")
    with open_runtime(tmp_path / "stub.gguf", n_ctx=64) as session:
        tokens = Tokens(session, {kv.key: kv for kv in vocabulary}, open_reference(demo))
        comparison = compare_prompts(template, LlamaServer(session, abilities(_TURNS)), tokens)
    assert comparison.unexplained == ()
    assert comparison.limits["added_bos"] == len(askable(abilities(_TURNS)))


def test_a_template_that_only_fails_is_told_apart() -> None:
    """Failing on everything is an error of the template; refusing by its own words is not; nor is failing on some."""
    failing = refuses_all(render_all(Template("{{ messages[0].nothing.at_all }}")))
    assert isinstance(failing, UnsupportedError)
    assert refuses_all(render_all(Template("{{ raise_exception('no') }}"))) is None
    assert refuses_all(render_all(Template("{{ messages[1].content.strip() }}"))) is None


def test_the_template_for_tools_is_used_for_them() -> None:
    """Where a checkpoint has another template for tools, conversations with tools are rendered by it."""
    able = frozenset({TOOLS})
    template = Template("plain", "{{ tools | length }}")
    inputs = [handed_on(conversation, able) for conversation in askable(able)]
    texts = {
        bool(one.tools): text
        for one, text in zip(inputs, render_all(replace(template, source="plain{# tools #}")), strict=True)
    }
    assert texts == {False: "plain", True: "2"}


def test_conversations_cover_what_people_do() -> None:
    """Names differ, and system prompts, tools, calls, results, thoughts, repeated roles and other scripts are there."""
    assert len({conversation.name for conversation in CONVERSATIONS}) == len(CONVERSATIONS)
    roles = {message["role"] for conversation in CONVERSATIONS for message in conversation.messages}
    assert roles == {"system", "user", "assistant", "tool"}
    assert {conversation.thinking for conversation in CONVERSATIONS} == {None, True, False}
    rows = [tuple(message["role"] for message in conversation.messages) for conversation in CONVERSATIONS]
    assert any(a == b for row in rows for a, b in pairwise(row) if a != "tool")
    keys = {key for conversation in CONVERSATIONS for message in conversation.messages for key in message}
    assert {"tool_calls", "tool_call_id", "name", "reasoning_content"} <= keys


def test_tools_come_out_of_gos_structs() -> None:
    """Keys stand in Go's order, what its structs do not have is gone, whole numbers have no fraction."""
    conversation = next(one for one in CONVERSATIONS if one.name == "a tool call")
    inputs = handed_on(conversation, frozenset({TOOLS}))
    assert inputs.tools is not None
    function = inputs.tools[0]["function"]
    assert list(function) == ["name", "description", "parameters"]
    assert list(function["parameters"]) == ["type", "required", "properties"]
    assert list(function["parameters"]["properties"]["unit"]) == ["type", "enum"]
    assert list(function["parameters"]["properties"]["at"]["items"]) == ["description", "type"]
    arguments = inputs.messages[1]["tool_calls"][0]["function"]["arguments"]
    assert (list(arguments), repr(arguments["days"])) == (["town", "days", "at"], "2")
    sent = server_request(inputs)["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert sent == '{"town":"Zürich","days":2,"at":[6,18.5]}'


def test_thinking_is_said_to_those_who_can() -> None:
    """A model with thoughts in its template is told to think unless somebody says no; others are told nothing."""
    ask = Conversation("ask", ({"role": "user", "content": "Hi"},))
    assert handed_on(ask, frozenset({THINKING})).variables == {"enable_thinking": True}
    assert handed_on(replace(ask, thinking=False), frozenset({THINKING})).variables == {"enable_thinking": False}
    assert handed_on(ask, frozenset()).variables == {}
    thought = next(one for one in CONVERSATIONS if one.name == "thinking after a thought")
    assert "reasoning_content" not in handed_on(thought, frozenset({THINKING})).messages[1]


@pytest.mark.parametrize(
    ("template", "able"),
    [
        ("{{ tools }}", {TOOLS}),
        ("tool_calls", {TOOLS}),
        ("<think></think>", {THINKING}),
        ("<think>", set()),
        ("content.split('</think>')", {THINKING}),
        ("content.split('</think>') reasoning_content", set()),
        ("", set()),
    ],
)
def test_abilities_are_what_ollama_finds(template: str, able: set[str]) -> None:
    """Tools and thinking are seen by the words that Ollama looks for."""
    assert abilities(template) == able
    assert all(one.needs <= able for one in askable(abilities(template)))


@pytest.mark.native
def test_an_engine_that_refuses_is_no_failure_of_the_server(serve: Callable[[str], Any]) -> None:
    """What a template cannot do is the input's fault, not the server's."""
    source = "{% if messages | length > 2 %}{{ 'a'.casefold() }}{% endif %}"
    with serve(source) as session, pytest.raises(InputError, match="refused"):
        session.apply_template([{"role": "user", "content": "Hi"}] * 3)
