"""Sessions: heads that break off, proxies, CAs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from pipeline.runtime.web import session

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nLocation: /a/long/address\r\n\r\nGGUF"


@contextmanager
def _answering(data: bytes) -> Iterator[str]:
    """Answer one request with *data*, and close the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join()


@pytest.mark.parametrize("length", range(len(ANSWER)))
def test_an_answer_that_breaks_off_is_none(length: int) -> None:
    """Cut at any byte, in the head or the body, an answer is an error; http.client alone takes a cut head for whole."""
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    with _answering(ANSWER[:length]) as url, session("127.0.0.1") as http, pytest.raises(broken):
        http.get(url, timeout=10)


def test_a_whole_answer() -> None:
    """The same answer, whole."""
    with _answering(ANSWER) as url, session("127.0.0.1") as http:
        answer = http.get(url, timeout=10)
    assert (answer.content, answer.headers["Location"]) == (b"GGUF", "/a/long/address")


@pytest.mark.parametrize(
    ("host", "asks"), [("localhost", False), ("127.0.0.1", False), ("127.9.9.9", False), ("example.com", True)]
)
def test_no_proxy_is_asked_about_this_machine(host: str, asks: bool) -> None:
    """Proxies of the environment are for other hosts."""
    with session(host) as http:
        assert http.trust_env is asks


def test_no_login_of_ones_own_accord(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies in ~/.netrc is sent nowhere, not after a redirect either: `ollama pull` has no login."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    seen: list[str | None] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(302 if self.path == "/there" else 200)
            self.send_header("Location", "/here")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server, session("example.com") as http:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert http.get(f"http://127.0.0.1:{server.server_port}/there", timeout=10).status_code == 200
        http.close()
        server.shutdown()
        thread.join()
    assert seen == [None, None]


def test_the_ca_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """REQUESTS_CA_BUNDLE is believed for this machine as well."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with session("localhost") as http:
        assert http.verify == str(tmp_path / "ca.pem")
