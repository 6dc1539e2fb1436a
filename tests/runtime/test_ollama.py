"""Ollama is found as its own client finds it, and the tests' real one works with the built llama.cpp."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.ollama import TRIED, daemon_url, daemon_version, find_ollama


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("example", "http://example:11434"),
        ("example:99", "http://example:99"),
        ("example:", "http://example:11434"),
        (":99", "http://127.0.0.1:99"),
        ("http://example", "http://example:80"),
        ("https://example", "https://example:443"),
        ("https://example:99/some/path/", "https://example:99/some/path"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104  # never bound
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("[::]:99", "http://[::1]:99"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[fe80::2]:99", "http://[fe80::2]:99"),
        ("example:66000", "http://example:11434"),
        ("https://example:x", "https://example:443"),
        (' "example:99" ', "http://example:99"),
    ],
)
def test_the_daemons_address_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    """Every form of OLLAMA_HOST leads to the address that Ollama's client would ask."""
    assert daemon_url({"OLLAMA_HOST": host}) == url


def test_the_program_is_looked_for_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ollama` on PATH is found; an empty PATH has none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ollama() is None
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_ollama() == program


@pytest.fixture
def stranger() -> Iterator[Any]:
    """A web server that is not Ollama; `answers` maps paths to (status, body)."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b"no"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "version"),
    [
        (200, json.dumps({"version": "0.34.4"}).encode(), "0.34.4"),
        (200, b"<html>", None),
        (200, b"[]", None),
        (200, b'{"version": 3}', None),
        (500, b'{"version": "1"}', None),
    ],
)
def test_only_an_answer_like_ollamas_counts(stranger: Any, status: int, body: bytes, version: str | None) -> None:
    """Any other server on that port is no Ollama."""
    url, answers = stranger
    answers["/api/version"] = (status, body)
    assert daemon_version(url) == version


def test_nobody_listening_is_no_daemon() -> None:
    """A closed port is an answer, not an error."""
    assert daemon_version("http://127.0.0.1:9") is None


@pytest.mark.ollama
@pytest.mark.native
def test_a_real_ollama_runs_a_model_with_the_built_llama(ollama: Any, demo_gguf: Path, tmp_path: Path) -> None:
    """The fixture's server is of a version that counts as tried, starts empty, takes a model and answers from it."""
    version = daemon_version(ollama.url)
    assert version in {version for version, _ in TRIED}
    assert ollama.get("/api/tags") == {"models": []}
    (tmp_path / "Modelfile").write_text(f"FROM {demo_gguf}\n")
    ollama.cli("create", "ours", "-f", str(tmp_path / "Modelfile"))
    answer = ollama.post(
        "/api/generate",
        model="ours",
        prompt="<|im_start|>user\nWhat is Q4_K_M?<|im_end|>\n<|im_start|>assistant\n",
        raw=True,
        options={"temperature": 0},
    )
    assert answer["response"].startswith("Q4_K_M is a 4-bit K-quant mix")


@pytest.mark.ollama
@pytest.mark.native
def test_a_stopped_ollama_takes_its_runners_along(
    ollama_root: Path, demo_gguf: Path, tmp_path: Path, oracle: Any
) -> None:
    """After the block neither the server nor a llama-server of it runs, even with a model loaded."""
    with oracle("ollama").running_ollama(ollama_root, tmp_path / "run") as server:
        (tmp_path / "Modelfile").write_text(f"FROM {demo_gguf}\n")
        server.cli("create", "ours", "-f", str(tmp_path / "Modelfile"))
        server.post("/api/generate", model="ours", prompt="x", raw=True, options={"num_predict": 1})
        assert len(server.get("/api/ps")["models"]) == 1
        url = server.url
    assert daemon_version(url) is None
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_there(path)]
    assert not [command for command in commands if str(tmp_path).encode() in command]


def _is_there(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
