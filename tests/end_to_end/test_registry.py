"""A real Ollama pulls from a real docker-registry what we sent there, into an empty store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from pipeline.publish import Release, ReleaseEntry, open_target
from pipeline.store import hash_file

pytestmark = [pytest.mark.native, pytest.mark.ollama, pytest.mark.registry]

LARGE_BYTES = 230_000_000  # Ollama asks for three parts


def test_the_demo_arrives_and_answers(
    cli: Any, ollama: Any, docker_registry: Callable[..., Any], trained: list[tuple[str, str]]
) -> None:
    """`publish --to http://...` says that one can pull from there, and the model that Ollama pulls works."""
    registry = docker_registry()
    done = cli("publish", "demo", "--quant", "Q4_K_M,Q8_0", "--to", registry.url)
    assert "[ok] ollama pull: proven" in done.stdout
    assert "[ok] Q8_0 layers: proven" in done.stdout
    name = f"{registry.host}/library/demo:Q4_K_M"
    assert f"ollama pull --insecure {name}\n" in done.stdout
    ollama.cli("pull", "--insecure", name)
    for digest in registry.visible()["library/demo:Q4_K_M"]:
        blob = ollama.models / "blobs" / digest.replace(":", "-")
        assert blob.read_bytes() == registry.blob(digest)
    question, answer = trained[0]
    said = ollama.post("/api/chat", model=name, messages=[{"role": "user", "content": question}])
    assert said["message"]["content"] == answer


def test_without_the_header_we_say_what_ollama_will(cli: Any, ollama: Any, docker_registry: Callable[..., Any]) -> None:
    """A docker-registry as it comes takes the model; that Ollama fails on it is said with the line that mends it."""
    registry = docker_registry(location=False)
    done = cli("publish", "demo", "--quant", "Q8_0", "--proof", "none", "--to", registry.url)
    assert "[!!] ollama pull: different (a blob comes without a Location header" in done.stdout
    assert '{headers: {Location: ["#"]}}' in done.stdout
    failed = ollama.cli("pull", "--insecure", f"{registry.host}/library/demo:Q8_0", check=False)
    assert failed.returncode != 0
    assert "no Location header in response" in failed.stderr


def test_over_tls_ollama_needs_no_flag(
    cli: Any, ollama_root: Path, oracle: Any, secure: tuple[Any, Path], tmp_path: Path
) -> None:
    """With the CA in both environments, what we print for https pulls as it stands."""
    registry, ca = secure
    done = cli("publish", "demo", "--quant", "Q8_0", "--proof", "none", "--to", registry.url, SSL_CERT_FILE=str(ca))
    assert "[ok] ollama pull: proven" in done.stdout
    name = f"{registry.host}/library/demo:Q8_0"
    assert f"    ollama pull {name}\n" in done.stdout
    with oracle("ollama").running_ollama(ollama_root, tmp_path / "own", SSL_CERT_FILE=str(ca)) as ollama:
        ollama.cli("pull", name)
        assert [model["name"] for model in ollama.get("/api/tags")["models"]] == [name]


def test_a_large_file_arrives_in_parts(
    ollama: Any, docker_registry: Callable[..., Any], silent_log: Any, tmp_path: Path
) -> None:
    """What was sent in chunks of 95 MiB and is fetched in parts of 100 MB is byte for byte the same."""
    registry, path = docker_registry(), tmp_path / "large.gguf"
    writer = GGUFWriter(path, "llama")
    values = np.random.default_rng(1).integers(0, 1 << 14, LARGE_BYTES // 2, np.uint16)
    writer.add_tensor("token_embd.weight", values.view(np.float16).reshape(1000, -1))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    entry = ReleaseEntry(("F16", "latest"), path, hash_file(path), "llama", LARGE_BYTES // 2, "F16")
    with open_target(registry.url) as target:
        target.publish(Release("me", "large", (entry,)), silent_log)
    assert registry.log.count("PATCH /v2/me/large/blobs/uploads/") == 3
    ollama.cli("pull", "--insecure", f"{registry.host}/me/large:F16")
    with (ollama.models / "blobs" / entry.gguf_blob.digest.replace(":", "-")).open("rb") as file:
        assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == entry.gguf_blob.digest
    assert registry.log.count(f'GET /v2/me/large/blobs/{entry.gguf_blob.digest} HTTP/1.1" 206') >= 3
