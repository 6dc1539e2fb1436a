"""The ollama target, and the one question it asks a running Ollama."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.publish import Release, ReleaseEntry, open_target
from pipeline.publish._daemon import Daemon, check_listed

NAME, DIGEST = "localhost:11500/library/demo:Q4_K_M", "a" * 64


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bytes], None]]:
    """A server in Ollama's place that gives one answer to /api/tags, set by calling this."""
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            status, body = answers[-1] if self.path == "/api/tags" else (404, b"")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
        yield lambda status, body: answers.append((status, body))
        server.shutdown()
        thread.join()


def _tags(**models: str) -> bytes:
    return json.dumps({"models": [{"name": name, "digest": digest} for name, digest in models.items()]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, _tags(**{NAME: DIGEST, "x:latest": "b" * 64}), "proven"),
        (200, _tags(**{NAME: "b" * 64}), "different"),
        (200, _tags(), "different"),
        (500, b"", "not checked"),
        (200, b"not JSON", "not checked"),
        (200, b'{"models":null}', "not checked"),
        (200, b"[]", "not checked"),
    ],
)
def test_what_a_running_ollama_lists(
    daemon: Callable[[int, bytes], None], status: int, body: bytes, state: str
) -> None:
    """Only the same digest under the same name is a proof; an answer that is not Ollama's is none."""
    daemon(status, body)
    assert check_listed(Daemon(), {NAME: f"sha256:{DIGEST}"}, Path("/store")).state == state


def test_no_ollama_is_not_an_error(
    entry: Callable[..., ReleaseEntry], release: Callable[..., Release], tmp_path: Path, silent_log: Any
) -> None:
    """Without a daemon the model is published, and the check says how to make it."""
    with open_target("ollama") as target:
        published = target.publish(release(entry(tmp_path / "a")), silent_log)
    *_, check = published.checks
    assert (check.state, check.command) == ("not checked", "ollama list")
    assert published.commands == ("ollama run localhost:11500/library/demo:Q4_K_M",)
    assert (tmp_path / "ollama/manifests/localhost:11500/library/demo/latest").is_file()


def test_a_proxy_is_not_asked(daemon: Callable[[int, bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The question goes to this machine, whatever proxy the environment names."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed.getsockname()[1]}")
        daemon(200, _tags(**{NAME: DIGEST}))
        assert check_listed(Daemon(), {NAME: f"sha256:{DIGEST}"}, Path("/store")).state == "proven"


def test_a_second_spelling_is_removed_with_ollamas_own_command(
    entry: Callable[..., ReleaseEntry], release: Callable[..., Release], tmp_path: Path, silent_log: Any
) -> None:
    """The hint names the program that knows this store."""
    with open_target("ollama") as target:
        target.publish(release(entry(tmp_path / "a")), silent_log)
        with pytest.raises(UsageError, match="first: ollama rm localhost:11500/library/demo:Q4_K_M"):
            target.publish(release(entry(tmp_path / "b", tags=("q4_k_m",))), silent_log)
