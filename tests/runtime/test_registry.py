"""Asking a registry: nobody there, somebody else, nothing published, a good one, and ones that Ollama fails on."""

from __future__ import annotations

import copy
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.job import Job
from pipeline.runtime.registry import probe_registry
from pipeline.serve import BackgroundServer
from pipeline.store import Store

DIGEST = "sha256:" + "a" * 64
ANSWERS: dict[str, Any] = {
    "/v2/": {},
    "/v2/_catalog": {"repositories": ["library/m"]},
    "/v2/library/m/tags/list": {"name": "library/m", "tags": ["t"]},
    "/v2/library/m/manifests/t": {"layers": [{"digest": DIGEST, "size": 9}, {"digest": "sha256:x", "size": 1}]},
    f"/v2/library/m/blobs/{DIGEST}": b"GGUF file",
}


@contextmanager
def _serving(answers: dict[str, Any], headers: dict[str, str]) -> Iterator[str]:
    """Serve fixed answers; a path that is missing is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815  # the name that http.server calls

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
WITH_LOCATION = VERSION | {"Location": "#"}


def test_a_good_registry_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_log: Any) -> None:
    """Our own registry: empty at first, ready when something is published."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path))
    with BackgroundServer(Store(tmp_path)) as server:
        assert probe_registry(server.address).state == "empty"
        flow.package(Job("demo", ("Q4_0",), proof="none"), silent_log)
        found = probe_registry(server.address)
    assert (found.state, "library/demo:" in found.detail) == ("ready", True)


def test_nobody_there() -> None:
    """A port where nobody listens is told from one where somebody else does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert probe_registry(f"127.0.0.1:{port}").state == "absent"


@pytest.mark.parametrize("answers", [{}, {"/v2/": {}}])
def test_another_program(answers: dict[str, Any]) -> None:
    """A web server that is no registry is named as such, whether or not it knows the path."""
    with _serving(answers, {"Server": "x"}) as address:
        assert probe_registry(address).state == "other"


def test_somebody_who_says_nothing() -> None:
    """A program that takes the connection and never answers is given up on, and named as another one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = probe_registry(f"127.0.0.1:{server.getsockname()[1]}", timeout=0.2)
    assert (found.state, "no answer" in found.detail) == ("other", True)


@pytest.mark.parametrize(
    ("headers", "change", "state"),
    [
        (WITH_LOCATION, lambda _: None, "ready"),
        (VERSION, lambda _: None, "broken"),
        (WITH_LOCATION | {"Location": "/elsewhere"}, lambda _: None, "broken"),
        (WITH_LOCATION | {"Content-Length": "8"}, lambda _: None, "broken"),
        (WITH_LOCATION, lambda a: a["/v2/library/m/manifests/t"]["layers"][0].update(size=10), "broken"),
        (WITH_LOCATION, lambda a: a["/v2/library/m/tags/list"].update(tags=None), "empty"),
        (WITH_LOCATION, lambda a: a.pop(f"/v2/library/m/blobs/{DIGEST}"), "broken"),
        (WITH_LOCATION, lambda a: a.pop("/v2/library/m/tags/list"), "broken"),
        (WITH_LOCATION, lambda a: a.update({"/v2/library/m/manifests/t": {"layers": []}}), "broken"),
        (WITH_LOCATION, lambda a: a.update({"/v2/_catalog": [1]}), "broken"),
        (WITH_LOCATION, lambda a: a.update({"/v2/_catalog": {"repositories": []}}), "empty"),
    ],
)
def test_registries_that_ollama_fails_on(
    headers: dict[str, str], change: Callable[[dict[str, Any]], Any], state: str
) -> None:
    """No Location header, a blob or a list missing, another size, or answers of another form: broken."""
    answers = copy.deepcopy(ANSWERS)
    change(answers)
    with _serving(answers, headers) as address:
        assert probe_registry(address).state == state


@pytest.mark.registry
@pytest.mark.parametrize(("location", "state"), [(True, "ready"), (False, "broken")])
def test_a_docker_registry(location: bool, state: str, docker_registry: Callable[..., Any], silent_log: Any) -> None:
    """A docker-registry is ready with the Location header, and without it broken for `ollama pull`."""
    registry = docker_registry(location=location)
    assert probe_registry(registry.host).state == "empty"
    flow.package(Job("demo", ("Q4_0",), targets=(registry.url,), proof="none"), silent_log)
    found = probe_registry(registry.url)
    assert found.state == state
    assert ("headers: {Location" in found.detail) is not location


@pytest.mark.registry
def test_a_closed_registry(docker_registry: Callable[..., Any], tmp_path: Path) -> None:
    """One that wants a login is named as one that `ollama pull` cannot use."""
    (tmp_path / "htpasswd").write_text("", encoding="ascii")
    registry = docker_registry(auth={"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}})
    found = probe_registry(registry.host)
    assert (found.state, "login" in found.detail) == ("broken", True)
