"""A real Ollama pushes to our registry, and pulls over https with a certificate of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trustme

from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.types import Layer

pytestmark = [pytest.mark.native, pytest.mark.ollama]

TOKEN = "a token of this test alone"  # noqa: S105


def put_model(store: Store, name: Name, n_bytes: int) -> Manifest:
    """Put a model of random bytes into a store."""
    config = store.add_bytes(b'{"model_format":"gguf"}\n')
    manifest = Manifest(Layer(CONFIG, config), (Layer(MODEL, store.add_bytes(os.urandom(n_bytes))),))
    store.write_manifest(name, manifest)
    return manifest


def test_push(ollama: Any, tmp_path: Path) -> None:
    """`ollama push` is refused, with the line to add, until its key is allowed; then all is here byte for byte.

    120 MB go in two pieces, as Ollama cuts them.
    """
    keys, store = tmp_path / "keys", Store(tmp_path / "registry")
    with BackgroundServer(store, settings=Settings(token=TOKEN, ollama_keys=keys)) as server:
        theirs = Name.parse(f"{server.registry}/me/pushed:Q4_K_M")
        ours = Name.parse("me/pushed:Q4_K_M")
        manifest = put_model(Store(ollama.models), theirs, 120_000_000)
        refused = ollama.cli("push", "--insecure", str(theirs), check=False)
        assert refused.returncode != 0
        line = (ollama.home / ".ollama" / "id_ed25519.pub").read_text(encoding="utf-8").strip()
        assert f"the line to add: {line}" in refused.stderr
        assert store.list() == ()
        keys.write_text(line, encoding="utf-8")
        ollama.cli("push", "--insecure", str(theirs))
    assert store.read_manifest(ours) == manifest
    assert store.manifest_bytes(ours) == Store(ollama.models).manifest_bytes(theirs)
    assert all(row.ok for row in store.verify(ours))


def test_https(ollama_root: Path, oracle: Any, tmp_path: Path) -> None:
    """An Ollama whose server trusts the authority pulls and pushes without --insecure; another one is turned away."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    keys, store = tmp_path / "keys", Store(tmp_path / "registry")
    put_model(store, Name.parse("me/secure"), 1_000_000)
    settings = Settings(token=TOKEN, ollama_keys=keys, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    running = oracle("ollama").running_ollama
    with BackgroundServer(store, settings=settings) as server:
        name = f"{server.registry}/me/secure:latest"
        with running(ollama_root, tmp_path / "stranger") as ollama:
            assert "certificate" in ollama.cli("pull", name, check=False).stderr
        with running(ollama_root, tmp_path / "friend", SSL_CERT_FILE=str(tmp_path / "ca.pem")) as ollama:
            ollama.cli("pull", name)
            assert Store(ollama.models).manifest_bytes(Name.parse(name)) == store.manifest_bytes(
                Name.parse("me/secure")
            )
            keys.write_bytes((ollama.home / ".ollama" / "id_ed25519.pub").read_bytes())
            back = Name.parse(f"{server.registry}/me/back")
            put_model(Store(ollama.models), back, 1_000_000)
            ollama.cli("push", str(back))
    assert all(row.ok for row in store.verify(Name.parse("me/back")))
