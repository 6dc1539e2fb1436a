"""Pulling as Ollama does: what it takes, what it hashes, and what it refuses."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from pipeline.errors import AccessError, FormatError, PipelineError
from pipeline.runtime import pull as module
from pipeline.runtime.pull import pull
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.types import Layer

WEIGHTS = hashlib.sha256(b"seed").digest() * 10_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one model."""
    store = Store(tmp_path / "store")
    manifest = Manifest(Layer(CONFIG, store.add_bytes(b"{}\n")), (Layer(MODEL, store.add_bytes(WEIGHTS)),))
    store.write_manifest(Name.parse("demo:Q4_0"), manifest)
    return store


@pytest.mark.parametrize("least", [100_000_000, 50_000], ids=["one part", "parts"])
def test_every_byte_comes(store: Store, tmp_path: Path, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest as it is stored, and each blob whole, in one part or several; progress ends at the whole."""
    monkeypatch.setattr(module, "_PART_LEAST", least)
    seen: list[tuple[int, int]] = []
    with BackgroundServer(store) as server:
        got = pull(f"http://{server.address}", "library/demo", "Q4_0", tmp_path, lambda *now: seen.append(now))
    assert got.manifest == store.manifest_bytes(Name.parse("demo:Q4_0"))
    assert [path.read_bytes() for path in got.files.values()] == [WEIGHTS, b"{}\n"]
    assert seen[-1] == (len(WEIGHTS) + 3, len(WEIGHTS) + 3)
    assert (got.n_parts, got.n_bytes) == (2 if least > len(WEIGHTS) else 8, len(WEIGHTS) + 3)


def test_a_damaged_blob_is_refused(store: Store, tmp_path: Path) -> None:
    """A blob that is not its digest is an error."""
    store.blob_path(f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}").write_bytes(WEIGHTS[:-1] + b"x")
    with BackgroundServer(store) as server, pytest.raises(FormatError, match="not what its digest says"):
        pull(f"http://{server.address}", "library/demo", "Q4_0", tmp_path)


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    """A tag that is not there, and a registry that is not there, are told."""
    with BackgroundServer(store) as server:
        base = f"http://{server.address}"
        with pytest.raises(AccessError, match="404"):
            pull(base, "library/demo", "Q8_0", tmp_path)
    with pytest.raises(AccessError, match="does not answer"):
        pull(base, "library/demo", "Q4_0", tmp_path)


class _Bad(BaseHTTPRequestHandler):
    """A registry without something that Ollama needs: *lack* says what."""

    lack = ""
    data = b"x" * 100

    def do_GET(self) -> None:
        digest = f"sha256:{hashlib.sha256(self.data).hexdigest()}"
        layer = f'{{"digest": "{digest}", "size": 100}}'
        is_manifest = "/manifests/" in self.path
        if self.lack == "digest":
            layer = '{"digest": "../outside", "size": 100}'
        if self.lack == "size":
            layer = f'{{"digest": "{digest}", "size": 99}}'
        body = f'{{"config": {layer}, "layers": [{layer}]}}'.encode() if is_manifest else self.data
        if is_manifest and self.lack == "manifest":
            body = b'{"layers": 5}'
        is_part = "Range" in self.headers
        self.send_response(206 if is_part else 200)
        if self.lack != "location" and not is_manifest:
            self.send_header("Location", self.path)
        if is_part and self.lack == "bytes":
            body = body[:50]
        if not (self.command == "HEAD" and self.lack == "length"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(params=["manifest", "location", "bytes", "length", "digest", "size"])
def bad(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a registry that lacks something."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Bad,), {"lack": request.param}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_registry_that_ollama_could_not_use(bad: str, tmp_path: Path) -> None:
    """No manifest, no Location on a blob, missing bytes, no length, another size, no digest: each is told.

    A digest becomes a file's name, so nothing may be written outside of the folder.
    """
    folder = tmp_path / "pulled"
    folder.mkdir()
    with pytest.raises(PipelineError, match=r"is no manifest|not what `ollama pull` needs|does not answer"):
        pull(bad, "library/demo", "Q4_0", folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_from_an_authority_of_ones_own(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE names the authority of a registry that is pulled from, as of one that is published to."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    settings = Settings(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with BackgroundServer(store, settings=settings) as server:
        got = pull(f"https://{server.registry}", "library/demo", "Q4_0", tmp_path)
    assert [path.read_bytes() for path in got.files.values()] == [WEIGHTS, b"{}\n"]
