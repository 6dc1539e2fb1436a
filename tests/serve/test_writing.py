"""Pushing and deleting, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serve import BackgroundServer, Settings
from pipeline.serve._uploads import IDLE_S, MAX_OPEN, Uploads
from pipeline.store import Manifest, Name, Store
from pipeline.store.blobs import TEMP_PREFIX, hash_bytes
from pipeline.store.manifest import CONFIG, MODEL, OCI_MANIFEST
from pipeline.types import Blob, Layer

REPOSITORY = "me/new"
DOCKER = {"Content-Type": "application/vnd.docker.distribution.manifest.v2+json"}
DATA = bytes(range(256)) * 4000  # 1 MB


@pytest.fixture
def base(writable: BackgroundServer) -> str:
    """The address of the repository that is pushed to."""
    return f"http://{writable.address}/v2/{REPOSITORY}"


def begin(pusher: requests.Session, base: str) -> str:
    """Begin an upload and return its address."""
    answer = pusher.post(f"{base}/blobs/uploads/", timeout=10)
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-0")
    return answer.headers["Location"]


def push_blob(pusher: requests.Session, base: str, data: bytes) -> Blob:
    """Push a blob in one piece."""
    blob = hash_bytes(data)
    answer = pusher.put(begin(pusher, base), params={"digest": blob.digest}, data=data, timeout=30)
    assert answer.status_code == 201, answer.text
    return blob


def push_model(pusher: requests.Session, base: str, tag: str = "Q4_K_M", **more: Any) -> bytes:
    """Push a whole model and return its manifest."""
    config, model = push_blob(pusher, base, b"{}\n"), push_blob(pusher, base, DATA)
    data = Manifest(Layer(CONFIG, config), (Layer(MODEL, model),), **more).to_bytes()
    headers = DOCKER if not more else {"Content-Type": more["media_type"]}
    answer = pusher.put(f"{base}/manifests/{tag}", data=data, headers=headers, timeout=10)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Docker-Content-Digest"] == hash_bytes(data).digest
    return data


def error(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return answer.status_code, answer.json()["errors"][0]["code"]


def leftovers(store: Store) -> list[str]:
    """List the staging files of a store."""
    return [path.name for path in store.blobs_dir.iterdir() if TEMP_PREFIX in path.name]


def test_a_model_that_is_pushed_is_served(pusher: requests.Session, base: str, store: Store) -> None:
    """After the blobs and the manifest the model is there, with the very bytes, and nothing else is left."""
    data = push_model(pusher, base)
    assert requests.get(f"{base}/manifests/Q4_K_M", timeout=10).content == data
    assert store.manifest_bytes(Name.parse("me/new:Q4_K_M")) == data
    assert requests.get(f"{base}/blobs/{hash_bytes(DATA).digest}", timeout=10).content == DATA
    assert all(row.ok for row in store.verify(Name.parse("me/new:Q4_K_M")))
    assert leftovers(store) == []


def test_the_bytes_of_a_manifest_stay(pusher: requests.Session, base: str) -> None:
    """Spaces, order and unknown keys of a manifest are kept, as its digest is its name."""
    tree = json.loads(push_model(pusher, base))
    data = json.dumps({"annotations": {"a": "<ü>"}, **tree}, indent=3, ensure_ascii=False).encode() + b"\n"
    answer = pusher.put(f"{base}/manifests/spaced", data=data, headers=DOCKER, timeout=10)
    assert answer.status_code == 201
    for reference in ("spaced", hash_bytes(data).digest):
        found = requests.get(f"{base}/manifests/{reference}", timeout=10)
        assert (found.content, found.headers["Docker-Content-Digest"]) == (data, hash_bytes(data).digest)


def test_an_oci_manifest_keeps_its_type(pusher: requests.Session, base: str) -> None:
    """A manifest is answered with the type it was pushed with."""
    push_model(pusher, base, media_type=OCI_MANIFEST)
    assert requests.get(f"{base}/manifests/Q4_K_M", timeout=10).headers["Content-Type"] == OCI_MANIFEST


def test_chunks(pusher: requests.Session, base: str, store: Store) -> None:
    """Pieces in order make the blob; the status tells where it stands; Location is absolute."""
    place, blob = begin(pusher, base), hash_bytes(DATA)
    assert place.startswith(f"{base}/blobs/uploads/")
    for start in (0, 400_000, 800_000):
        piece = DATA[start : start + 400_000]
        headers = {"Content-Range": f"{start}-{start + len(piece) - 1}"}
        answer = pusher.patch(place, data=piece, headers=headers, timeout=10)
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{start + len(piece) - 1}")
        status = pusher.get(answer.headers["Location"], timeout=10)
        assert (status.status_code, status.headers["Range"]) == (204, answer.headers["Range"])
        assert not store.has(blob.digest)
    answer = pusher.put(place, params={"digest": blob.digest}, timeout=10)
    assert answer.status_code == 201
    assert requests.get(answer.headers["Location"], timeout=10).content == DATA
    assert error(pusher.get(place, timeout=10)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("text", ["1-10", "5-14", "0-20", "10-1", "0-8"])
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_piece_out_of_order(pusher: requests.Session, base: str, text: str, method: str) -> None:
    """A piece that is not the next one, or not of the length it claims, is 416 and changes nothing."""
    place = begin(pusher, base)
    params = {"digest": hash_bytes(b"0123456789").digest}
    answer = pusher.request(
        method, place, params=params, data=b"0123456789", headers={"Content-Range": text}, timeout=10
    )
    assert error(answer) == (416, "BLOB_UPLOAD_INVALID")
    assert answer.headers["Location"] == place
    answer = pusher.put(place, params=params, data=b"0123456789", headers={"Content-Range": "0-9"}, timeout=10)
    assert answer.status_code == 201


def test_a_stream_without_a_length(pusher: requests.Session, base: str) -> None:
    """A body in HTTP chunks, whose length nobody knows, is an upload too."""
    place = begin(pusher, base)
    pieces = (DATA[i : i + 100_000] for i in range(0, len(DATA), 100_000))
    assert pusher.patch(place, data=pieces, timeout=10).status_code == 202
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, timeout=10)
    assert answer.status_code == 201


def test_one_post(pusher: requests.Session, base: str, store: Store) -> None:
    """A POST with digest and body is a whole upload."""
    blob = hash_bytes(DATA)
    answer = pusher.post(f"{base}/blobs/uploads/", params={"digest": blob.digest}, data=DATA, timeout=10)
    assert answer.status_code == 201
    assert store.has(blob.digest, blob.size)


def test_a_mount_needs_no_bytes(pusher: requests.Session, base: str, weights: bytes) -> None:
    """A blob of another repository is there at once; one that is nowhere begins an upload."""
    query = {"mount": hash_bytes(weights).digest, "from": "library/demo"}
    answer = pusher.post(f"{base}/blobs/uploads/", params=query, timeout=10)
    assert answer.status_code == 201
    assert requests.head(answer.headers["Location"], timeout=10).headers["Content-Length"] == str(len(weights))
    query["mount"] = f"sha256:{'0' * 64}"
    assert pusher.post(f"{base}/blobs/uploads/", params=query, timeout=10).status_code == 202


@pytest.mark.parametrize("digest", [f"sha256:{'0' * 64}", "sha256:x", "", f"sha512:{'0' * 128}", "../x"])
def test_a_wrong_digest(pusher: requests.Session, base: str, store: Store, digest: str) -> None:
    """Bytes that are not what was promised become no blob."""
    before = sorted(path.name for path in store.blobs_dir.iterdir())
    place = begin(pusher, base)
    answer = pusher.put(place, params={"digest": digest}, data=DATA, timeout=10)
    assert error(answer) == (400, "DIGEST_INVALID")
    pusher.delete(place, timeout=10)
    assert sorted(path.name for path in store.blobs_dir.iterdir()) == before


def test_cancel(pusher: requests.Session, base: str, store: Store) -> None:
    """A cancelled upload leaves nothing and is unknown then."""
    place = begin(pusher, base)
    pusher.patch(place, data=DATA, timeout=10)
    assert leftovers(store)
    assert pusher.delete(place, timeout=10).status_code == 204
    assert leftovers(store) == []
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = pusher.request(method, place, params={"digest": hash_bytes(b"").digest}, timeout=10)
        assert error(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(pusher: requests.Session, base: str) -> None:
    """An upload cannot be gone on with under another name."""
    place = begin(pusher, base).replace(REPOSITORY, "me/other")
    assert error(pusher.patch(place, data=b"x", timeout=10)) == (404, "BLOB_UPLOAD_UNKNOWN")


def _cut(writable: BackgroundServer, place: str, token: str, sent: bytes, claimed: int) -> None:
    """Send a piece's head and part of its body, then break the connection."""
    host, _, port = writable.address.partition(":")
    path = place.partition(writable.address)[2]
    head = f"PATCH {path} HTTP/1.1\r\nHost: {writable.address}\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Range: 0-{claimed - 1}\r\nContent-Length: {claimed}\r\n\r\n"
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(head.encode() + sent)


def test_a_cut_piece_may_be_sent_again(
    pusher: requests.Session, base: str, writable: BackgroundServer, token: str
) -> None:
    """A piece whose connection broke counts for nothing: the same piece can follow, as `ollama push` sends it."""
    place = begin(pusher, base)
    _cut(writable, place, token, DATA[:300_000], len(DATA))
    headers = {"Content-Range": f"0-{len(DATA) - 1}"}
    assert pusher.patch(place, data=DATA, headers=headers, timeout=10).status_code == 202
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, timeout=10)
    assert answer.status_code == 201


def test_a_client_that_stops_sending(
    pusher: requests.Session, base: str, writable: BackgroundServer, token: str
) -> None:
    """A body that does not come is given up after a while (2 s here), with 408, and the upload can go on."""
    place = begin(pusher, base)
    host, _, port = writable.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("PATCH", place.partition(writable.address)[2])
    connection.putheader("Content-Length", "1000")
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders(b"x" * 10)
    assert connection.getresponse().status == 408
    connection.close()
    assert pusher.get(place, timeout=10).headers["Range"] == "0-0"


def test_manifests_need_their_blobs(pusher: requests.Session, base: str, store: Store) -> None:
    """A manifest whose blob is missing, or of another size, is refused, and the model does not appear."""
    config, model = push_blob(pusher, base, b"{}\n"), hash_bytes(DATA)
    data = Manifest(Layer(CONFIG, config), (Layer(MODEL, model),)).to_bytes()
    for reference in ("latest", hash_bytes(data).digest):
        answer = pusher.put(f"{base}/manifests/{reference}", data=data, headers=DOCKER, timeout=10)
        assert error(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert answer.json()["errors"][0]["detail"] == model.digest
    push_blob(pusher, base, DATA)
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
    pusher: requests.Session, base: str, data: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    """Broken, foreign, deep or large manifests are refused in the registry's words."""
    whole = push_model(pusher, base, "other")
    answer = pusher.put(f"{base}/manifests/latest", data=whole if data is None else data, headers=headers, timeout=10)
    assert error(answer) == (status, code)


def test_a_manifest_by_digest_alone(pusher: requests.Session, base: str, store: Store) -> None:
    """Without a tag it is there by its digest, is in no list, and goes when it is deleted."""
    data = push_model(pusher, base).replace(b'"schemaVersion":2', b'"schemaVersion": 2')
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


def test_deletions(pusher: requests.Session, base: str, store: Store) -> None:
    """A tag is deleted alone, a digest with all its tags; blobs that a model needs stay until it is gone."""
    digest = hash_bytes(push_model(pusher, base, "one")).digest
    push_model(pusher, base, "two")
    blob = f"{base}/blobs/{hash_bytes(DATA).digest}"
    assert error(pusher.delete(blob, timeout=10)) == (409, "DENIED")
    assert pusher.delete(f"{base}/manifests/one", timeout=10).status_code == 202
    assert error(pusher.delete(f"{base}/manifests/one", timeout=10)) == (404, "MANIFEST_UNKNOWN")
    assert requests.get(f"{base}/tags/list", timeout=10).json()["tags"] == ["two"]
    push_model(pusher, base, "three")
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


def test_a_second_spelling_of_a_tag(pusher: requests.Session, base: str) -> None:
    """Tags that differ in case alone are refused: older Ollamas mix them up."""
    data = push_model(pusher, base)
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


def test_two_pushers_of_one_blob(pusher: requests.Session, base: str, store: Store, token: str) -> None:
    """Both succeed, whoever is first, and readers meanwhile get the whole blob."""
    data = os.urandom(8_000_000)
    blob = hash_bytes(data)

    def push(_: int) -> int:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {token}"
            place = begin(session, base)
            return session.put(place, params={"digest": blob.digest}, data=data, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(push, range(4))) == [201] * 4
        found = list(pool.map(lambda _: requests.get(f"{base}/blobs/{blob.digest}", timeout=60).content, range(4)))
    assert found == [data] * 4
    assert leftovers(store) == []


def test_gc_leaves_an_open_upload(pusher: requests.Session, base: str, store: Store, name: Name) -> None:
    """A collection of any age while an upload is open does not touch it; it takes the blob when nobody names it."""
    store.manifest_path(name).with_name("broken").unlink()  # gc refuses to guess what it names
    place = begin(pusher, base)
    pusher.patch(place, data=DATA[:1000], timeout=10)
    store.gc(older_than=-1)
    assert len(leftovers(store)) == 1
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, data=DATA[1000:], timeout=10)
    assert answer.status_code == 201
    assert hash_bytes(DATA).digest.replace(":", "-") in [one.path.name for one in store.gc(older_than=-1)]


def test_the_end_of_the_server_drops_uploads(store: Store, token: str) -> None:
    """Staging files go with the server; those of a killed one go with the next sweep."""
    with BackgroundServer(store, settings=Settings(token=token)) as server, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        begin(session, f"http://{server.address}/v2/{REPOSITORY}")
        assert len(leftovers(store)) == 1
    assert leftovers(store) == []


def test_idle_uploads_are_dropped(store: Store) -> None:
    """An upload that nobody goes on with is dropped after its time, one that is used is not."""
    now = 0.0
    uploads = Uploads(store, clock=lambda: now)
    old, used = uploads.begin("a/b"), uploads.begin("a/b")
    assert old
    assert used
    now = IDLE_S
    assert uploads.find(used, "a/b")
    now = IDLE_S + 1
    assert uploads.drop_idle() == 1
    assert uploads.find(old, "a/b") is None
    assert len(leftovers(store)) == 1
    uploads.close()
    assert leftovers(store) == []


def test_too_many_uploads(pusher: requests.Session, base: str) -> None:
    """Uploads that are only begun do not fill the server: the next is refused, with when to come again."""
    places = [begin(pusher, base) for _ in range(MAX_OPEN)]
    answer = pusher.post(f"{base}/blobs/uploads/", timeout=10)
    assert error(answer) == (429, "TOOMANYREQUESTS")
    assert int(answer.headers["Retry-After"]) > 0
    pusher.delete(places[0], timeout=10)
    begin(pusher, base)


def test_what_the_disk_cannot_hold(pusher: requests.Session, base: str, writable: BackgroundServer, token: str) -> None:
    """A piece that is larger than the free disk is refused before it comes."""
    place = begin(pusher, base)
    connection = http.client.HTTPConnection(writable.address, timeout=10)
    connection.putrequest("PATCH", place.partition(writable.address)[2])
    connection.putheader("Content-Length", str(10**17))
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 507
    assert "disk" in json.loads(answer.read())["errors"][0]["message"]
    connection.close()


_SERVE = """
import sys
from pathlib import Path
from pipeline.serve import Settings, serve
from pipeline.store import Store
serve(Store(Path(sys.argv[1])), "127.0.0.1", 0, lambda a: print(a, flush=True), Settings(token="t" * 20))
"""


def _status(pid: int, key: str) -> int:
    """Read a figure of /proc/PID/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@contextlib.contextmanager
def _process(repository: Path, root: Path) -> Iterator[tuple[str, int]]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(root)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_blob_needs_no_memory(repository: Path, tmp_path: Path) -> None:
    """While 300 MB are pushed, and pulled by three at once, the server grows by less than 40 MB."""
    piece, times = os.urandom(1_000_000), 300
    state: Callable[[], Iterator[bytes]] = lambda: (piece for _ in range(times))  # noqa: E731
    digest = hashlib.sha256()
    for part in state():
        digest.update(part)
    name = f"sha256:{digest.hexdigest()}"
    with _process(repository, tmp_path) as (address, pid), requests.Session() as session:
        base = f"http://{address}/v2/{REPOSITORY}"
        session.headers["Authorization"] = f"Bearer {'t' * 20}"
        place = begin(session, base)
        before = _status(pid, "VmHWM")
        assert session.put(place, params={"digest": name}, data=state(), timeout=300).status_code == 201
        pullers = [threading.Thread(target=_drain, args=(f"{base}/blobs/{name}",)) for _ in range(3)]
        for one in pullers:
            one.start()
        for one in pullers:
            one.join()
        assert _status(pid, "VmHWM") - before < 40_000_000


def _drain(url: str) -> None:
    with requests.get(url, stream=True, timeout=60) as answer:
        assert sum(len(part) for part in answer.iter_content(1 << 20)) == int(answer.headers["Content-Length"])


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
