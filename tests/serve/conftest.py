"""A served store with one model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.types import Layer

TOKEN = "a token of this test alone"  # noqa: S105
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


@pytest.fixture
def pusher(writable: BackgroundServer) -> Iterator[requests.Session]:
    """A client that knows the token."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        session.trust_env = False
        yield session
