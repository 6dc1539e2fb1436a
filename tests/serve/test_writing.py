"""Manifests and deletions, over real HTTP."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.blobs import TEMP_PREFIX, hash_bytes
from pipeline.store.manifest import CONFIG, MODEL, OCI_MANIFEST
from pipeline.types import Blob, Layer

REPOSITORY = "me/new"
DOCKER = {"Content-Type": "application/vnd.docker.distribution.manifest.v2+json"}
DATA = bytes(range(256)) * 4000  # 1 MB, as in conftest.py


def error(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return answer.status_code, answer.json()["errors"][0]["code"]


def leftovers(store: Store) -> list[str]:
    """List the staging files of a store."""
    return [path.name for path in store.blobs_dir.iterdir() if TEMP_PREFIX in path.name]


def test_a_model_that_is_pushed_is_served(pusher: Any, base: str, store: Store) -> None:
    """After the blobs and the manifest the model is there, with the very bytes, and nothing else is left."""
    data = pusher.push_model(base)
    assert requests.get(f"{base}/manifests/Q4_K_M", timeout=10).content == data
    assert store.manifest_bytes(Name.parse("me/new:Q4_K_M")) == data
    assert requests.get(f"{base}/blobs/{hash_bytes(DATA).digest}", timeout=10).content == DATA
    assert all(row.ok for row in store.verify(Name.parse("me/new:Q4_K_M")))
    assert leftovers(store) == []


def test_the_bytes_of_a_manifest_stay(pusher: Any, base: str) -> None:
    """Spaces, order and unknown keys of a manifest are kept, as its digest is its name."""
    tree = json.loads(pusher.push_model(base))
    data = json.dumps({"annotations": {"a": "<ü>"}, **tree}, indent=3, ensure_ascii=False).encode() + b"\n"
    answer = pusher.put(f"{base}/manifests/spaced", data=data, headers=DOCKER, timeout=10)
    assert answer.status_code == 201
    for reference in ("spaced", hash_bytes(data).digest):
        found = requests.get(f"{base}/manifests/{reference}", timeout=10)
        assert (found.content, found.headers["Docker-Content-Digest"]) == (data, hash_bytes(data).digest)


def test_an_oci_manifest_keeps_its_type(pusher: Any, base: str) -> None:
    """A manifest is answered with the type it was pushed with."""
    pusher.push_model(base, media_type=OCI_MANIFEST)
    assert requests.get(f"{base}/manifests/Q4_K_M", timeout=10).headers["Content-Type"] == OCI_MANIFEST


def test_manifests_need_their_blobs(pusher: Any, base: str, store: Store) -> None:
    """A manifest whose blob is missing, or of another size, is refused, and the model does not appear."""
    config, model = pusher.push_blob(base, b"{}\n"), hash_bytes(DATA)
    data = Manifest(Layer(CONFIG, config), (Layer(MODEL, model),)).to_bytes()
    for reference in ("latest", hash_bytes(data).digest):
        answer = pusher.put(f"{base}/manifests/{reference}", data=data, headers=DOCKER, timeout=10)
        assert error(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert answer.json()["errors"][0]["detail"] == model.digest
    pusher.push_blob(base, DATA)
    data = Manifest(Layer(CONFIG, config), (Layer(MODEL, Blob(model.digest, 5)),)).to_bytes()
    assert error(pusher.put(f"{base}/manifests/latest", data=data, headers=DOCKER, timeout=10)) == (400, "SIZE_INVALID")
    assert not store.manifest_path(Name.parse("me/new")).exists()


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"{", {}, 400, "MANIFEST_INVALID"),
        (b"[" * 100_000, {}, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[]}', {}, 400, "MANIFEST_INVALID"),
        (b" " * (4 << 20) + b" ", {}, 413, "SIZE_INVALID"),
        (None, {"Content-Type": "application/vnd.oci.image.index.v1+json"}, 400, "MANIFEST_INVALID"),
        (None, {"Content-Type": OCI_MANIFEST}, 400, "MANIFEST_INVALID"),
    ],
)
def test_what_is_no_manifest(
    pusher: Any, base: str, data: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    """Broken, foreign, deep or large manifests are refused in the registry's words."""
    whole = pusher.push_model(base, "other")
    answer = pusher.put(f"{base}/manifests/latest", data=whole if data is None else data, headers=headers, timeout=10)
    assert error(answer) == (status, code)


def test_a_manifest_by_digest_alone(pusher: Any, base: str, store: Store) -> None:
    """Without a tag it is there by its digest, is in no list, and goes when it is deleted."""
    data = pusher.push_model(base).replace(b'"schemaVersion":2', b'"schemaVersion": 2')
    digest = hash_bytes(data).digest
    assert pusher.put(f"{base}/manifests/{digest}", data=data, headers=DOCKER, timeout=10).status_code == 201
    assert requests.get(f"{base}/manifests/{digest}", timeout=10).content == data
    assert requests.get(f"{base}/tags/list", timeout=10).json()["tags"] == ["Q4_K_M"]
    wrong = f"sha256:{'1' * 64}"
    answer = pusher.put(f"{base}/manifests/{wrong}", data=data, headers=DOCKER, timeout=10)
    assert error(answer) == (400, "DIGEST_INVALID")
    assert pusher.delete(f"{base}/manifests/{digest}", timeout=10).status_code == 202
    assert requests.get(f"{base}/manifests/{digest}", timeout=10).status_code == 404
    assert store.problems() == Store(store.root).problems()


def test_deletions(pusher: Any, base: str, store: Store) -> None:
    """A tag is deleted alone, a digest with all its tags; blobs that a model needs stay until it is gone."""
    digest = hash_bytes(pusher.push_model(base, "one")).digest
    pusher.push_model(base, "two")
    blob = f"{base}/blobs/{hash_bytes(DATA).digest}"
    assert error(pusher.delete(blob, timeout=10)) == (409, "DENIED")
    assert pusher.delete(f"{base}/manifests/one", timeout=10).status_code == 202
    assert error(pusher.delete(f"{base}/manifests/one", timeout=10)) == (404, "MANIFEST_UNKNOWN")
    assert requests.get(f"{base}/tags/list", timeout=10).json()["tags"] == ["two"]
    pusher.push_model(base, "three")
    assert pusher.delete(f"{base}/manifests/{digest}", timeout=10).status_code == 202
    assert requests.get(f"{base}/tags/list", timeout=10).status_code == 404
    assert not (store.manifests_dir / "localhost:11500" / "me").exists()
    assert pusher.delete(blob, timeout=10).status_code == 202
    assert error(pusher.delete(blob, timeout=10)) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    "repository", ["Me/new", "me/new-", "me.x/new", "-me/new", "me/a___b", "me/%2e%2e", "%2e%2e/x"]
)
def test_names_that_some_registry_refuses(writable: BackgroundServer, token: str, repository: str) -> None:
    """Only names that Ollama and other registries accept can be pushed."""
    connection = http.client.HTTPConnection(writable.address, timeout=10)
    path = f"/v2/{repository}/blobs/uploads/"
    connection.request("POST", path, headers={"Authorization": f"Bearer {token}", "Content-Length": "0"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["errors"][0]["code"] == "NAME_INVALID"


def test_a_second_spelling_of_a_tag(pusher: Any, base: str) -> None:
    """Tags that differ in case alone are refused: older Ollamas mix them up."""
    data = pusher.push_model(base)
    answer = pusher.put(f"{base}/manifests/q4_k_m", data=data, headers=DOCKER, timeout=10)
    assert error(answer) == (400, "TAG_INVALID")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BackgroundServer, Path]]:
    """A registry for writing in a folder of its own, and that folder's parent."""
    parent = tmp_path_factory.mktemp("outside")
    with BackgroundServer(Store(parent / "store"), settings=Settings(token="t" * 20)) as server:
        yield server, parent


_PIECES = st.text(st.sampled_from("ab.:/\\%~\0\n _-AZ\u00e9"), max_size=12) | st.sampled_from(
    ["..", ".", "../..", "%2e%2e"]
)


@given(namespace=_PIECES, model=_PIECES, reference=_PIECES, method=st.sampled_from(["PUT", "DELETE", "GET"]))
def test_no_path_leads_out(
    outside: tuple[BackgroundServer, Path], namespace: str, model: str, reference: str, method: str
) -> None:
    """Whatever is asked for, no file appears or goes beside the store, and the answer is the registry's own."""
    server, parent = outside
    connection = http.client.HTTPConnection(server.address, timeout=10)
    path = "/v2/" + "/".join(quote(part, safe="") for part in (namespace, model, "manifests", reference))
    connection.request(method, path, body=b"{}", headers={"Authorization": f"Bearer {'t' * 20}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in {400, 404, 405, 415}
    assert body
    assert json.loads(body)["errors"]
    assert {path.name for path in parent.iterdir()} <= {"store"}
    assert not (parent / "store" / "manifests").exists()


def test_a_manifest_that_comes_too_slowly(writable: BackgroundServer, token: str) -> None:
    """A manifest that is not sent to its end is given up (after 2 s here)."""
    connection = http.client.HTTPConnection(writable.address, timeout=20)
    connection.putrequest("PUT", f"/v2/{REPOSITORY}/manifests/latest")
    connection.putheader("Content-Length", "100")
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders(b"{")
    started = time.monotonic()
    assert connection.getresponse().status == 408
    assert time.monotonic() - started < 15
    connection.close()
