"""The wire to a registry: where it leads, what is followed, what an answer means."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.errors import AccessError, PipelineError, ResourceError
from pipeline.publish._refusals import Answer, refusal
from pipeline.publish._wire import Request, Wire


@pytest.fixture
def front(oracle: Callable[[str], ModuleType]) -> Iterator[Any]:
    """A server that gives the answers that a test names, by path."""
    proxy = oracle("proxy")
    with proxy.fault_proxy("127.0.0.1:1") as opened:
        yield opened


def _answers(oracle: Callable[[str], ModuleType], **by_path: bytes) -> Callable[[int, str, str], Any]:
    return lambda _number, _method, path: oracle("proxy").Fault(answer=by_path[path.strip("/")])


def test_a_redirect_is_followed(front: Any, oracle: Callable[[str], ModuleType]) -> None:
    """A relative and an absolute redirect of a question lead to the answer."""
    answer = oracle("proxy").answer
    plan = _answers(
        oracle,
        a=answer(302, Location="/b"),
        b=answer(307, Location=f"http://{front.host}/c"),
        c=answer(200, "here"),
    )
    wire = Wire(urlsplit(f"http://{front.host}"))
    with front.failing(plan):
        assert wire.ask(Request("GET", "/a")).body == b"here"
    wire.close()


def test_a_circle_is_left(front: Any, oracle: Callable[[str], ModuleType]) -> None:
    """Redirects that never end are an error."""
    wire = Wire(urlsplit(f"http://{front.host}"))
    with front.failing(_answers(oracle, a=oracle("proxy").answer(302, Location="/a"))), pytest.raises(AccessError):
        wire.ask(Request("GET", "/a"))
    wire.close()


def test_the_login_stays_at_home(
    front: Any, oracle: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect to another port is another origin: it gets no Authorization."""
    monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", "s3cret")
    proxy = oracle("proxy")
    heads: list[str] = []
    with proxy.fault_proxy("127.0.0.1:1") as other:
        front.listen = other.listen = heads.append
        there = proxy.answer(307, Location=f"http://{other.host}/b")
        wire = Wire(urlsplit(f"http://{front.host}"))
        with front.failing(_answers(oracle, a=there)), other.failing(_answers(oracle, b=proxy.answer(200))):
            assert wire.ask(Request("PUT", "/a", body=lambda: b"GGUF")).status == 200
        wire.close()
    assert ["Bearer s3cret" in head for head in heads] == [True, False]


def test_nothing_leaves_https() -> None:
    """An address on http is refused where the registry was spoken to by https."""
    wire = Wire(urlsplit("https://registry.example.com"))
    assert wire.resolve("https://registry.example.com/v2/a", "b?x=1") == "https://registry.example.com/v2/b?x=1"
    with pytest.raises(AccessError, match="from https to http") as caught:
        wire.resolve("https://registry.example.com/v2/a", "http://registry.example.com/v2/b?secret")
    assert "secret" not in str(caught.value)
    wire.close()


def _answer(status: int, **error: object) -> Answer:
    body = json.dumps({"errors": [error]} if error else {}).encode()
    return Answer("PUT", "http://host:5000/v2/x", status, {}, body)


@pytest.mark.parametrize(
    ("answer", "kind", "what"),
    [
        (_answer(401), AccessError, "docker login host:5000"),
        (_answer(403), AccessError, "http://USER:PASSWORD@host:5000"),
        (_answer(404, code="NAME_UNKNOWN", message="no project"), AccessError, "NAME_UNKNOWN no project"),
        (_answer(405), AccessError, "takes no models"),
        (_answer(413), AccessError, "client_max_body_size"),
        (_answer(418), AccessError, "refuses this"),
        (_answer(500, code="UNKNOWN", detail={"Op": "write", "Err": 28}), ResourceError, "disk is full"),
        (_answer(500, code="UNKNOWN", detail="write /x: file too large"), ResourceError, "disk is full"),
        (_answer(500, code="UNKNOWN"), AccessError, "in trouble"),
        (_answer(507), ResourceError, "disk is full"),
    ],
)
def test_what_an_answer_means(answer: Answer, kind: type[PipelineError], what: str) -> None:
    """Each refusal has its kind, what the registry said, and a next step."""
    error = refusal(answer)
    assert type(error) is kind
    assert what in str(error)
    assert error.hint


@pytest.mark.parametrize("body", [b"", b"[]", b'{"errors": 1}', b'{"errors": [1, {}]}', b"[" * 100_000, b"\xff" * 9999])
def test_any_body_is_shown_short(body: bytes) -> None:
    """What is no registry's error is shown as it is, shortened."""
    answer = Answer("GET", "http://host/v2/", 500, {}, body)
    assert answer.codes <= {"None"}
    assert len(answer.said) <= 400
