"""A GGUF file answers, through the vendored llama.cpp or the prebuilt one, and nothing is left running."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from pipeline.errors import InputError, ToolError
from pipeline.runtime.llama import ENVIRONMENT, LlamaInstall
from pipeline.runtime.prebuilt import prebuilt_version
from pipeline.runtime.session import open_runtime, runtime_at_hand

QUESTION = [{"role": "user", "content": "What is Q4_K_M?"}]
PROMPT = "<|im_start|>user\nWhat is Q4_K_M?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = (
    "Q4_K_M is a 4-bit K-quant mix of about 4.8 bits per weight; it balances size and quality and is the usual default."
)
GREEDY = {"temperature": 0}


@pytest.fixture
def no_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """llama.cpp is neither built nor named."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=[pytest.param("llama", marks=pytest.mark.native), "prebuilt"])
def kind(request: pytest.FixtureRequest) -> str:
    """What the session must say of itself, with each llama.cpp in turn."""
    if request.param == "llama":
        llama: LlamaInstall = request.getfixturevalue("llama")
        return llama.version
    if prebuilt_version() is None:
        pytest.skip("the extra `run` is not installed")
    request.getfixturevalue("no_llama")
    return "xllamacpp"


def test_a_session_answers(kind: str, demo_gguf: Path) -> None:
    """Template, answer, stream, completion and tokens of one conversation fit together."""
    pieces: list[str] = []
    with open_runtime(demo_gguf, threads=1) as session:
        assert kind in session.kind
        assert session.apply_template(QUESTION) == PROMPT
        assert session.chat(QUESTION, options=GREEDY) == ANSWER
        assert session.chat(QUESTION, stream_to=pieces.append, options=GREEDY) == ANSWER
        assert len(pieces) > 10
        assert "".join(pieces) == ANSWER
        by_text = session.complete(PROMPT, 8)
        by_tokens = session.complete(session.tokenize(PROMPT), 8)
    assert ANSWER.startswith(by_text.text)
    assert len(by_text.tokens) == 8
    assert by_tokens == by_text


@pytest.mark.usefixtures("kind")
def test_a_request_right_after_a_stream_is_answered(demo_gguf: Path) -> None:
    """The server drops the connection of a streamed answer; the next request must not notice."""
    with open_runtime(demo_gguf) as session:
        for _ in range(30):
            assert session.chat(QUESTION, stream_to=len, options={**GREEDY, "max_tokens": 2}) == "Q4"
            assert len(session.complete("x", 1).tokens) == 1


@pytest.mark.usefixtures("kind")
def test_special_tokens_are_parsed_unless_told_not_to(demo_gguf: Path) -> None:
    """`<|im_end|>` is one token as a prompt, plain text as content."""
    with open_runtime(demo_gguf) as session:
        assert len(session.tokenize("<|im_end|>")) == 1
        assert len(session.tokenize("<|im_end|>", parse_special=False)) > 1


@pytest.mark.usefixtures("kind")
def test_the_server_ends_with_the_session_and_asks_for_its_key(demo_gguf: Path) -> None:
    """Other programs on this machine get no answer during the session, and nobody does after it."""

    def strangers_status(url: str) -> int:
        return requests.post(f"{url}/completion", json={"prompt": "x"}, timeout=10).status_code

    with open_runtime(demo_gguf) as session:
        url = session.url
        assert strangers_status(url) == 401
    with pytest.raises(requests.ConnectionError):
        strangers_status(url)


@pytest.mark.usefixtures("kind")
def test_a_file_that_is_no_model_shows_the_log(tmp_path: Path) -> None:
    """llama.cpp's own reason is in the error."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ToolError, match="could not load the model") as caught, open_runtime(bad):
        pass
    assert caught.value.found is not None
    assert "bad.gguf" in caught.value.found


@pytest.mark.usefixtures("kind")
def test_a_refused_request_gives_the_servers_words(demo_gguf: Path) -> None:
    """A conversation that does not fit the context is bad input, and the session goes on."""
    with open_runtime(demo_gguf) as session:
        with pytest.raises(InputError, match="context size"):
            session.chat([{"role": "user", "content": "Q4_K_M " * 3000}])
        assert session.chat(QUESTION, options=GREEDY) == ANSWER


@pytest.mark.usefixtures("kind")
def test_an_embedding_model_embeds(pooled_gguf: Path) -> None:
    """A model with a pooling type gives one vector of the model's width."""
    with open_runtime(pooled_gguf, embedding=True) as session:
        vector = session.embed("What is Q4_K_M?")
    assert len(vector) == 256
    assert any(vector)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    """The file is looked for before any program is."""
    with pytest.raises(InputError, match="no such GGUF file"), open_runtime(tmp_path / "none.gguf"):
        pass


@pytest.mark.usefixtures("no_llama")
def test_the_prebuilt_one_names_the_way_to_the_optimized_one() -> None:
    """Whoever runs the prebuilt llama.cpp is told of `make llama`; without the extra there is none at hand."""
    label = runtime_at_hand()
    if prebuilt_version() is None:
        assert label is None
    else:
        assert label is not None
        assert "make llama" in label
