"""Starting and stopping the registry."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from pipeline.errors import AccessError, UsageError
from pipeline.serve import BackgroundServer, serve
from pipeline.store import Store

_SERVE = """
import sys
from pathlib import Path
from pipeline.serve import Settings, serve
from pipeline.store import Store
serve(Store(Path(sys.argv[1])), "localhost", 0, lambda address: print(address, flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(repository: Path, store: Store, number: signal.Signals) -> None:
    """It says where it answers once it does, and a signal ends it without an error, a slow download or not."""
    command = [sys.executable, "-c", _SERVE, str(store.root)]
    with subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        with requests.get(f"http://{address}/v2/", timeout=10) as answer:
            assert answer.status_code == 200
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stdout.read() == "ended\n"
        assert process.stderr.read() == ""


@pytest.mark.parametrize("request_line", [b"GET /\xff HTTP/1.1", b"\x16\x03\x01"])
def test_what_is_no_http_is_one_line(store: Store, request_line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody can send nonsense: it is answered with 400, and fills no log with traces."""
    with BackgroundServer(store) as server:
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(request_line + b"\r\nHost: localhost\r\n\r\n")
            assert b" 400 " in client.recv(1000).partition(b"\r\n")[0]
    assert all(record.exc_info is None and "\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104  # refused
def test_other_machines_are_kept_out(store: Store, host: str) -> None:
    """An address that others can reach needs a word from the user."""
    with pytest.raises(UsageError, match=r"(?s)needs no password.*--allow-remote"):
        serve(store, host, 0, pytest.fail)


@pytest.mark.parametrize(
    ("host", "more", "named", "status"),
    [
        ("[::1]", "", "localhost", 200),
        ("::1", "", "evil.example", 403),
        ("127.0.0.1", "", "evil.example", 403),
        ("127.0.0.1", "settings=Settings(allow_remote=True)", "models.example", 200),
    ],
)
def test_hosts(repository: Path, store: Store, host: str, more: str, named: str, status: int) -> None:
    """IPv6's own loopback is served too, with brackets or without; other names need --allow-remote."""
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no ::1")
    code = _SERVE.replace('"localhost"', repr(host)).replace("flush=True))", f"flush=True), {more})")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("[::1]:" if ":" in host else "127.0.0.1:")
        answer = requests.get(f"http://{address}/v2/", headers={"Host": named}, timeout=10)
        process.terminate()
    assert answer.status_code == status


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_port_in_use(store: Store) -> None:
    """A second registry on the same port is an access error that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AccessError, match="GGUF_PIPELINE_ADDR"):
            serve(store, "127.0.0.1", port, pytest.fail)
        with pytest.raises(AccessError), BackgroundServer(store, port):
            pytest.fail("it must not start")


def test_the_background_server_ends(store: Store) -> None:
    """It answers inside the context and nowhere after; no thread is left."""
    threads = threading.active_count()
    with BackgroundServer(store) as server:
        assert requests.get(f"http://{server.address}/v2/", timeout=10).status_code == 200
        assert server.registry == f"localhost:{server.address.rpartition(':')[2]}"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{server.address}/v2/", timeout=10)
    assert threading.active_count() == threads


def test_an_error_inside_the_context_ends_it_too(store: Store) -> None:
    """The server stops when the work beside it fails."""
    server = BackgroundServer(store)
    with pytest.raises(requests.HTTPError), server:
        requests.get(f"http://{server.address}/none", timeout=10).raise_for_status()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{server.address}/v2/", timeout=10)


def test_an_empty_store_is_served(tmp_path: Path) -> None:
    """A registry may start before anything is published, and makes no folder."""
    with BackgroundServer(Store(tmp_path / "none")) as server:
        assert requests.get(f"http://{server.address}/v2/_catalog", timeout=10).json() == {"repositories": []}
    assert not (tmp_path / "none").exists()
