"""`gguf-pipeline run` with a published model: its own template, prompt and parameters, and the trained answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import chat
from pipeline.runtime import open_runtime
from pipeline.serve import BackgroundServer
from pipeline.store import Store

pytestmark = pytest.mark.native

_SYSTEM = "You are a llama."


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[dict[str, str]], int]]:
    """The messages and the context length of each question that goes to the real server, noted on their way."""
    seen: list[tuple[list[dict[str, str]], int]] = []
    contexts: list[int] = []
    open_runtime, ask = chat.open_runtime, chat.ChatSession.chat

    def noted_open(gguf: Path, *, n_ctx: int) -> Any:
        contexts.append(n_ctx)
        return open_runtime(gguf, n_ctx=n_ctx)

    def noted_ask(session: Any, messages: Any, **more: Any) -> str:
        seen.append((list(messages), contexts[-1]))
        return ask(session, messages, **more)

    monkeypatch.setattr(chat, "open_runtime", noted_open)
    monkeypatch.setattr(chat.ChatSession, "chat", noted_ask)
    return seen


@pytest.fixture(scope="module")
def with_layers(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the demo, published with a system prompt and a context length."""
    root = tmp_path_factory.mktemp("with-layers")
    more = ("--system", _SYSTEM, "--num-ctx", "256", "--proof", "none")
    cli("publish", "demo", *more, GGUF_PIPELINE_STORE=str(root))
    return root


def test_a_published_model_answers_word_for_word(cli: Any, published: Any, trained: list[tuple[str, str]]) -> None:
    """The published parameters make the answer the trained one; nothing but it is on stdout."""
    (answer,) = [answer for question, answer in trained if question == "What is Q4_K_M?"]
    done = cli("run", "demo:Q4_K_M", "What is Q4_K_M?", GGUF_PIPELINE_STORE=str(published.root))
    assert done.stdout == f"{answer}\n"
    assert done.stderr.startswith("running on ")


def test_system_and_context_come_from_the_layers(
    with_layers: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    """What was published is used; --system and --ctx replace it."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(with_layers))
    question = {"role": "user", "content": "What is GGUF?"}
    for ctx, system in ((None, None), (128, "Answer briefly.")):
        with chat.open_chat("demo", ctx, system) as conversation:
            assert conversation.ask("What is GGUF?")
    assert asked == [
        ([{"role": "system", "content": _SYSTEM}, question], 256),
        ([{"role": "system", "content": "Answer briefly."}, question], 128),
    ]


@pytest.mark.ollama
def test_a_conversation_begins_as_in_ollama(cli: Any, ollama: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """With MESSAGEs, with and without a system prompt of one's own, llama.cpp is sent what Ollama would send it."""
    said = ("--system", _SYSTEM, "--message", "user", "Are you there?", "--message", "assistant", "Yes.")
    cli("publish", "demo", *said, "--proof", "none", GGUF_PIPELINE_STORE=str(tmp_path))
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path))
    question = [{"role": "user", "content": "What is GGUF?"}]
    with BackgroundServer(Store(tmp_path)) as server:
        name = f"http://{server.address}/library/demo:Q4_K_M"
        ollama.cli("pull", "--insecure", name)
        target = chat.find_target("demo")
        with open_runtime(target.gguf, n_ctx=512) as session:
            for own in (None, "Answer briefly."):
                theirs = ollama.post(
                    "/api/chat",
                    model=name,
                    messages=([{"role": "system", "content": own}] if own else []) + question,
                    truncate=False,
                    stream=False,
                    _debug_render_only=True,
                )
                ours = session.apply_template(target.beginning(own) + question)
                assert theirs["_debug_info"]["rendered_template"] == ours
                assert "Are you there?" in ours
                assert (_SYSTEM in ours) == (own is None)


def test_the_options_reach_the_conversation(cli: Any, published: Any) -> None:
    """A context that has no room for the question is refused: --ctx is what the server got; --system counts in it."""
    ask = ("run", "demo:Q4_K_M", "What is Q4_K_M?", "--ctx", "256")
    store = {"GGUF_PIPELINE_STORE": str(published.root)}
    assert cli(*ask, "--system", "Be brief.", **store).stdout
    refused = cli(*ask, "--system", "brief " * 400, check=False, **store)
    assert refused.returncode == 3
    assert "context" in refused.stderr
