"""The registry's answers, over real HTTP."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from urllib.parse import urljoin

import pytest
import requests

from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.blobs import hash_bytes

DEMO = "/v2/library/demo"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def test_ping(url: str) -> None:
    """The version check of every registry client succeeds."""
    for path in ("/v2/", "/v2"):
        answer = requests.get(url + path, timeout=10)
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_manifests(url: str, store: Store, name: Name, method: str, by: str) -> None:
    """A manifest is answered by tag and by digest, with the very bytes of the store."""
    data = store.manifest_bytes(name)
    digest = hash_bytes(data).digest
    reference = name.tag if by == "tag" else digest
    answer = requests.request(method, f"{url}{DEMO}/manifests/{reference}", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == MANIFEST_TYPE
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.headers["Content-Length"] == str(len(data))
    assert answer.content == (data if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_blobs(url: str, weights: bytes, method: str) -> None:
    """A whole blob comes with its length, its digest, and the Location that `ollama pull` insists on."""
    digest = hash_bytes(weights).digest
    path = f"{DEMO}/blobs/{digest}"
    answer = requests.request(method, url + path, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Length"] == str(len(weights))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Location"] == path
    assert answer.content == (weights if method == "GET" else b"")


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("100-199", 100, 200),
        ("1279999-", 1279999, 1280000),
        ("-10", 1279990, 1280000),
        ("5-9999999", 5, 1280000),
    ],
)
def test_ranges(url: str, weights: bytes, wanted: str, start: int, stop: int) -> None:
    """A part of a blob is answered with 206 and no Location."""
    blob = f"{url}{DEMO}/blobs/{hash_bytes(weights).digest}"
    answer = requests.get(blob, headers={"Range": f"bytes={wanted}"}, timeout=10)
    assert answer.status_code == 206
    assert answer.content == weights[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(weights)}"
    assert "Location" not in answer.headers


@pytest.mark.parametrize("wanted", ["bytes=1280000-", "bytes=2-1", "bytes=x-y", "bytes=0-1,5-6"])
def test_ranges_that_cannot_be(url: str, weights: bytes, wanted: str) -> None:
    """A part that is not there is 416, with the size there is, and an answer that ends."""
    blob = f"{url}{DEMO}/blobs/{hash_bytes(weights).digest}"
    answer = requests.get(blob, headers={"Range": wanted}, timeout=10)
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(weights)}"
    assert answer.content == b""


def test_a_range_after_the_blob_was_touched(url: str, store: Store, weights: bytes) -> None:
    """The ETag is the content's: a download goes on although the file's time has changed."""
    digest = hash_bytes(weights).digest
    blob = f"{url}{DEMO}/blobs/{digest}"
    tag = requests.head(blob, timeout=10).headers["ETag"]
    store.add_bytes(weights)
    answer = requests.get(blob, headers={"Range": "bytes=10-19", "If-Range": tag}, timeout=10)
    assert (answer.status_code, answer.content) == (206, weights[10:20])


def test_tags_and_catalog(url: str) -> None:
    """Lists hold the models of the served host; broken manifests and other hosts are left out."""
    assert requests.get(f"{url}{DEMO}/tags/list", timeout=10).json() == {
        "name": "library/demo",
        "tags": ["Q4_K_M", "latest"],
    }
    assert requests.get(f"{url}/v2/_catalog", timeout=10).json() == {"repositories": ["library/demo"]}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{DEMO}/manifests/none", 404, "MANIFEST_UNKNOWN"),
        (f"{DEMO}/manifests/sha256:{'0' * 64}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/library/foreign/manifests/latest", 404, "MANIFEST_UNKNOWN"),
        ("/v2/library/none/tags/list", 404, "NAME_UNKNOWN"),
        (f"{DEMO}/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
        (f"{DEMO}/blobs/sha256:xyz", 400, "DIGEST_INVALID"),
        (f"{DEMO}/blobs/..%2F..%2Fmanifests", 400, "DIGEST_INVALID"),
        (f"{DEMO}/manifests/..%2F..%2Fdemo", 404, "NAME_INVALID"),
        ("/v2/library/%2E%2E/manifests/x", 404, "NAME_INVALID"),
        ("/v2/%2E%2E%2F%2E%2E/demo/tags/list", 404, "NAME_INVALID"),
        (f"/v2/lib%00rary/demo/blobs/sha256:{'0' * 64}", 404, "NAME_INVALID"),
        ("/v2/a/b/c/manifests/x", 404, "NOT_FOUND"),
        ("/nothing", 404, "NOT_FOUND"),
    ],
)
def test_errors_are_the_registrys_json(server: object, path: str, status: int, code: str) -> None:
    """What is not there, or no name at all, is answered in the form that registry clients read; no path leads out."""
    connection = http.client.HTTPConnection(server.address, timeout=10)  # sends the path as it stands
    connection.request("GET", path)
    answer = requests.models.complexjson.loads(connection.getresponse().read())
    connection.close()
    (error,) = answer["errors"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "detail"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/blobs/uploads/", "/manifests/latest", "/nothing"])
def test_writing_is_refused(url: str, store: Store, method: str, path: str) -> None:
    """The registry is read-only, and says what is allowed."""
    before = sorted(store.root.rglob("*"))
    answer = requests.request(method, f"{url}{DEMO}{path}", data=b"x", timeout=10)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"
    assert sorted(store.root.rglob("*")) == before


def test_a_new_model_is_served_at_once(url: str, store: Store, name: Name) -> None:
    """What is published while the registry runs is there with the next request."""
    store.write_manifest(Name.parse("me/new:x"), store.read_manifest(name))
    assert requests.get(f"{url}/v2/me/new/manifests/x", timeout=10).status_code == 200


def test_a_pull_as_ollama_does_it(url: str, store: Store, name: Name) -> None:
    """The requests of `ollama pull`, one by one: manifest, then for each blob HEAD, GET without a range, and parts."""
    session = requests.Session()
    accept = {"Accept": MANIFEST_TYPE}
    pulled = session.get(f"{url}/v2/{name.repository}/manifests/{name.tag}", headers=accept, timeout=10).content
    assert pulled == store.manifest_bytes(name)
    for layer in Manifest.from_bytes(pulled).all_layers:
        blob = f"{url}/v2/{name.repository}/blobs/{layer.blob.digest}"
        total = int(session.head(blob, timeout=10).headers["Content-Length"])
        with session.get(blob, stream=True, timeout=10, allow_redirects=False) as probe:
            assert probe.status_code == 200
            direct = urljoin(blob, probe.headers["Location"])
        half = (total + 1) // 2
        parts = [(0, half), (half, total)] if total > 1 else [(0, total)]
        data = b"".join(
            requests.get(direct, headers={"Range": f"bytes={start}-{stop - 1}"}, timeout=10).content
            for start, stop in parts
        )
        assert hash_bytes(data) == layer.blob
    session.close()


@pytest.mark.parametrize("named", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:11500", "[::1]", "[::1]:11500"])
def test_every_name_of_this_machine_is_answered(url: str, named: str) -> None:
    """Whatever the port, as it may be forwarded."""
    assert requests.get(f"{url}/v2/", headers={"Host": named}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "named", ["evil.example", "evil.example:11500", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]", "::1", ""]
)
def test_another_name_is_refused(url: str, named: str) -> None:
    """A web page of another site that was made to point here (DNS rebinding) reads nothing."""
    answer = requests.get(f"{url}/v2/_catalog", headers={"Host": named}, timeout=10)
    assert answer.status_code == 403
    (error,) = answer.json()["errors"]
    assert (error["code"], error["detail"]) == ("DENIED", named)
    assert "--allow-remote" in error["message"]


class _Said(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.seen = text, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.seen.set()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends such connections")
def test_a_client_that_stops_reading(store: Store) -> None:
    """A client that asks for a large blob and takes nothing of it loses its connection after a while (1 s here)."""
    blob, said, log = store.add_bytes(bytes(40_000_000)), _Said("takes no more"), logging.getLogger("pipeline.serve")
    level = log.level
    log.addHandler(said)
    log.setLevel(logging.INFO)
    try:
        with BackgroundServer(store, settings=Settings(stall_s=1)) as server:
            host, _, port = server.address.partition(":")
            with socket.create_connection((host, int(port)), timeout=20) as sock:
                sock.sendall(f"GET {DEMO}/blobs/{blob.digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert said.seen.wait(30)
    finally:
        log.removeHandler(said)
        log.setLevel(level)
