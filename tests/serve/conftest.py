"""A served store with one model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.blobs import hash_bytes
from pipeline.store.manifest import CONFIG, MANIFEST, MODEL
from pipeline.types import Blob, Layer

TOKEN = "a token of this test alone"  # noqa: S105
REPOSITORY = "me/new"
DATA = bytes(range(256)) * 4000  # 1 MB: the weights of a model that is pushed
WEIGHTS = hashlib.sha256(b"seed").digest() * 40_000  # 1.28 MB


@pytest.fixture
def weights() -> bytes:
    """The content of the model's blob."""
    return WEIGHTS


@pytest.fixture
def name() -> Name:
    """The name of the model that is served."""
    return Name.parse("demo:Q4_K_M")


@pytest.fixture
def store(tmp_path: Path, name: Name) -> Store:
    """A store with one model under two tags, one model of another host, and a broken manifest."""
    store = Store(tmp_path / "store")
    manifest = Manifest(Layer(CONFIG, store.add_bytes(b"{}\n")), (Layer(MODEL, store.add_bytes(WEIGHTS)),))
    store.write_manifests([(name, manifest), (Name.parse("demo"), manifest)])
    store.write_manifest(Name.parse("example.org/library/foreign"), manifest)
    store.manifest_path(name).with_name("broken").write_bytes(b"{")
    return store


@pytest.fixture
def server(store: Store) -> Iterator[BackgroundServer]:
    """The store, served on a free port."""
    with BackgroundServer(store) as running:
        yield running


@pytest.fixture
def url(server: BackgroundServer) -> str:
    """The address of the served store."""
    return f"http://{server.address}"


@pytest.fixture
def token() -> str:
    """The token of the server that takes writes."""
    return TOKEN


@pytest.fixture
def writable(store: Store) -> Iterator[BackgroundServer]:
    """The store, served for writing too, on a free port."""
    with BackgroundServer(store, settings=Settings(token=TOKEN, stall_s=2)) as running:
        yield running


class Pusher(requests.Session):
    """A client that knows the token; *base* is the address of a repository."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["Authorization"] = f"Bearer {TOKEN}"
        self.trust_env = False

    def begin(self, base: str) -> str:
        """Begin an upload and return its address."""
        answer = self.post(f"{base}/blobs/uploads/", timeout=10)
        assert (answer.status_code, answer.headers["Range"]) == (202, "0-0")
        return answer.headers["Location"]

    def push_blob(self, base: str, data: bytes) -> Blob:
        """Push a blob in one piece."""
        blob = hash_bytes(data)
        answer = self.put(self.begin(base), params={"digest": blob.digest}, data=data, timeout=30)
        assert answer.status_code == 201, answer.text
        return blob

    def push_model(self, base: str, tag: str = "Q4_K_M", media_type: str = MANIFEST) -> bytes:
        """Push a whole model, whose weights are DATA, and return its manifest."""
        config, model = self.push_blob(base, b"{}\n"), self.push_blob(base, DATA)
        data = Manifest(Layer(CONFIG, config), (Layer(MODEL, model),), media_type).to_bytes()
        answer = self.put(f"{base}/manifests/{tag}", data=data, headers={"Content-Type": media_type}, timeout=10)
        assert answer.status_code == 201, answer.text
        assert answer.headers["Docker-Content-Digest"] == hash_bytes(data).digest
        return data


@pytest.fixture
def pusher() -> Iterator[Pusher]:
    """A client that knows the token."""
    with Pusher() as session:
        yield session


@pytest.fixture
def base(writable: BackgroundServer) -> str:
    """The address of the repository that is pushed to."""
    return f"http://{writable.address}/v2/{REPOSITORY}"
