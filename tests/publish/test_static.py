"""The target `static:DIR` behind a real nginx, pulled by a real Ollama; what it keeps and what it removes."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import requests

from pipeline.errors import UsageError
from pipeline.job import Job
from pipeline.preview import describe_publication
from pipeline.publish import Published, Release, ReleaseEntry, open_target
from pipeline.store.manifest import MANIFEST
from pipeline.types import Blob

MakeEntry = Callable[..., ReleaseEntry]
Publish = Callable[..., Published]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the target lies: a path with a blank."""
    return tmp_path / "my models"


@pytest.fixture
def publish(folder: Path, entry: MakeEntry, silent_log: Any, tmp_path: Path) -> Publish:
    """Publish one GGUF."""

    def run(data: bytes = b"GGUF", model: str = "demo", tags: tuple[str, ...] = ("Q4_K_M", "latest")) -> Published:
        with open_target(f"static:{folder}") as target:
            made = entry(tmp_path / "a.gguf", tags, data)
            return target.publish(Release("library", model, (made,)), silent_log)

    return run


@pytest.fixture
def nginx(oracle: Callable[[str], ModuleType]) -> ModuleType:
    """Debian's nginx, started by the test."""
    module = oracle("nginx")
    if module.program() is None:
        pytest.skip("nginx is not installed: apt-get install --no-install-recommends nginx-light")
    return module


@pytest.fixture
def served(nginx: ModuleType, folder: Path, publish: Publish, tmp_path: Path) -> Iterator[Any]:
    """The folder with one model, included into the `server` block of another nginx."""
    publish()
    with nginx.serve(tmp_path / "nginx", folder / "v2.conf") as server:
        yield server


def _blobs(folder: Path, model: str = "demo") -> set[bytes]:
    return {path.read_bytes() for path in (folder / "v2/library" / model / "blobs").iterdir()}


@pytest.mark.ollama
def test_each_address_answers_as_a_registry(served: Any, folder: Path) -> None:
    """Types, lengths, ranges and the Location header are what `ollama pull` needs; nothing else is served."""
    base = f"{served.url}/v2/library/demo"
    assert requests.get(f"{served.url}/v2/", timeout=5).json() == {}
    manifest = requests.get(f"{base}/manifests/latest", timeout=5)
    assert (manifest.status_code, manifest.headers["Content-Type"]) == (200, MANIFEST)
    assert manifest.content == (folder / "v2/library/demo/manifests/Q4_K_M").read_bytes()
    blob = f"{base}/blobs/{manifest.json()['layers'][0]['digest']}"
    whole = requests.get(blob, timeout=5)
    assert (whole.content, whole.headers["Location"]) == (b"GGUF", "#")
    assert requests.head(blob, timeout=5).headers["Content-Length"] == "4"
    part = requests.get(blob, headers={"Range": "bytes=1-2"}, timeout=5)
    assert (part.status_code, part.content) == (206, b"GU")
    for path in ("/v2/library/demo/manifests/none", f"/v2/library/demo/blobs/sha256:{'0' * 64}", "/v2/", "/README.md"):
        assert requests.get(served.url + path, timeout=5).status_code == (200 if path == "/v2/" else 404)
    (folder / "v2/library/demo/manifests/.pkg-x").write_text("{}")
    assert requests.get(f"{base}/manifests/.pkg-x", timeout=5).status_code == 404


@pytest.mark.ollama
def test_a_folder_is_served_by_the_command_that_is_printed(
    nginx: ModuleType, folder: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx.conf is whole: the printed command serves the folder at the address in the printed names."""
    port = nginx.free_port()
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", f"127.0.0.1:{port}")
    commands = publish().commands
    assert shlex.split(commands[0]) == ["nginx", "-p", str(folder), "-c", "nginx.conf"]
    assert commands[1:] == (
        f"ollama pull --insecure localhost:{port}/library/demo:Q4_K_M",
        f"ollama run localhost:{port}/library/demo:Q4_K_M",
    )
    with nginx.started(folder, port):
        answer = requests.get(f"http://127.0.0.1:{port}/v2/library/demo/manifests/latest", timeout=5)
    assert answer.status_code == 200
    assert f"ollama pull --insecure localhost:{port}/" in (folder / "README.md").read_text()


def _big_gguf(path: Path) -> Blob:
    """Write a GGUF of more than 200 MB, which Ollama pulls in several parts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    values = np.random.default_rng(0).integers(0, 1 << 16, (1 << 10, 105 << 10), np.uint16)
    writer.add_tensor("token_embd.weight", values.view(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("rb") as file:
        return Blob(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", path.stat().st_size)


@pytest.mark.ollama
def test_ollama_pulls_from_nginx(
    ollama: Any, nginx: ModuleType, folder: Path, silent_log: Any, tmp_path: Path, entry: MakeEntry
) -> None:
    """An empty store gets every byte of a file above 200 MB, asked for in several ranges, and shows what was said."""
    small = entry(tmp_path / "small.gguf")
    with open_target(f"static:{folder}") as target, target.staging([210 << 20]) as (path,):
        blob = _big_gguf(path)
        big = ReleaseEntry(
            ("F16", "latest"), path, blob, "llama", 1 << 20, "F16", system=small.system, licenses=["MIT"]
        )
        target.publish(Release("library", "big", (big,)), silent_log)
    with nginx.serve(tmp_path / "nginx", folder / "v2.conf") as server:
        ollama.cli("pull", "--insecure", f"{server.address}/library/big:F16")
        parts = [int(size) for method, uri, status, size in server.requests() if (method, status) == ("GET", "206")]
    with (ollama.models / "blobs" / blob.digest.replace(":", "-")).open("rb") as file:
        assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == blob.digest
    assert len([size for size in parts if size > 1 << 20]) >= 3
    shown = ollama.post("/api/show", model=f"{server.address}/library/big:F16")
    assert (shown["system"], shown["license"], shown["details"]["quantization_level"]) == (small.system, "MIT", "F16")


def test_a_dry_run_writes_nothing(folder: Path, demo: Path, silent_log: Any, publish: Publish) -> None:
    """A dry run says what is there already, and makes no folder."""
    job = Job(str(demo), ("Q4_K_M",), (f"static:{folder}",), name="demo")
    (would,) = describe_publication(job, silent_log)
    assert (would["targets"][0]["replaces"], folder.exists()) == ([], False)
    publish()
    (would,) = describe_publication(job, silent_log)
    assert would["targets"][0]["replaces"] == ["Q4_K_M", "latest"]


def test_two_models_share_a_file(folder: Path, publish: Publish) -> None:
    """The same weights under two names are one file; removing one name leaves the other whole."""
    publish()
    publish(model="other")
    (one,) = folder.glob(f"v2/library/demo/blobs/sha256:{hashlib.sha256(b'GGUF').hexdigest()}")
    (two,) = folder.glob(f"v2/library/other/blobs/{one.name}")
    assert one.stat().st_ino == two.stat().st_ino
    assert list((folder / ".staging/blobs").iterdir()) == []


def test_an_old_version_goes_after_an_hour(folder: Path, publish: Publish) -> None:
    """What a replaced version needed stays for those who are pulling it, and goes with a publication an hour later."""
    publish()
    for path in folder.glob("v2/library/demo/blobs/*"):
        os.utime(path, (0, 0))  # published long ago
    publish(b"GGUF 2")
    assert {b"GGUF", b"GGUF 2"} < _blobs(folder)
    publish(b"GGUF 3")
    assert {b"GGUF", b"GGUF 2", b"GGUF 3"} < _blobs(folder)
    for path in folder.glob("v2/library/demo/blobs/*"):
        os.utime(path, (0, 0))  # an hour later
    publish(b"GGUF 4")
    assert {b"GGUF 3", b"GGUF 4"} < _blobs(folder)
    assert not {b"GGUF", b"GGUF 2"} & _blobs(folder)


def test_another_tag_keeps_its_blobs(folder: Path, publish: Publish) -> None:
    """A publication of one tag removes nothing that another tag of the model names."""
    publish(tags=("Q8_0",))
    for path in folder.glob("v2/library/demo/blobs/*"):
        os.utime(path, (0, 0))
    publish(b"GGUF 2", tags=("Q4_K_M",))
    publish(b"GGUF 3", tags=("Q4_K_M",))
    assert {b"GGUF", b"GGUF 2", b"GGUF 3"} < _blobs(folder)


def test_a_spoilt_file_is_mended(folder: Path, publish: Publish) -> None:
    """What lies there is not trusted: publishing again puts the right bytes in every place."""
    publish()
    publish(model="other")
    (path,) = folder.glob(f"v2/library/demo/blobs/sha256:{hashlib.sha256(b'GGUF').hexdigest()}")
    path.write_bytes(b"GGUG")
    publish()
    assert b"GGUG" not in _blobs(folder) | _blobs(folder, "other")


@pytest.mark.parametrize("text", ["static:", "static:a$b", 'static:a"b', "static:a\\b", "static:a\nb"])
def test_a_path_that_nginx_cannot_hold_is_refused(text: str) -> None:
    """A folder whose name would mean something else in nginx.conf is refused before any work."""
    with pytest.raises(UsageError, match="web server"):
        open_target(text)
