"""Blobs on their way in, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.serve import BackgroundServer, Settings
from pipeline.serve._uploads import IDLE_S, MAX_OPEN, Uploads
from pipeline.store import Name, Store
from pipeline.store.blobs import TEMP_PREFIX, hash_bytes

REPOSITORY = "me/new"
DOCKER = {"Content-Type": "application/vnd.docker.distribution.manifest.v2+json"}
DATA = bytes(range(256)) * 4000  # 1 MB, as in conftest.py


def error(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return answer.status_code, answer.json()["errors"][0]["code"]


def leftovers(store: Store) -> list[str]:
    """List the staging files of a store."""
    return [path.name for path in store.blobs_dir.iterdir() if TEMP_PREFIX in path.name]


def test_chunks(pusher: Any, base: str, store: Store) -> None:
    """Pieces in order make the blob; the status tells where it stands; Location is absolute."""
    place, blob = pusher.begin(base), hash_bytes(DATA)
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
def test_a_piece_out_of_order(pusher: Any, base: str, text: str, method: str) -> None:
    """A piece that is not the next one, or not of the length it claims, is 416 and changes nothing."""
    place = pusher.begin(base)
    params = {"digest": hash_bytes(b"0123456789").digest}
    answer = pusher.request(
        method, place, params=params, data=b"0123456789", headers={"Content-Range": text}, timeout=10
    )
    assert error(answer) == (416, "BLOB_UPLOAD_INVALID")
    assert answer.headers["Location"] == place
    answer = pusher.put(place, params=params, data=b"0123456789", headers={"Content-Range": "0-9"}, timeout=10)
    assert answer.status_code == 201


def test_a_stream_without_a_length(pusher: Any, base: str) -> None:
    """A body in HTTP chunks, whose length nobody knows, is an upload too."""
    place = pusher.begin(base)
    pieces = (DATA[i : i + 100_000] for i in range(0, len(DATA), 100_000))
    assert pusher.patch(place, data=pieces, timeout=10).status_code == 202
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, timeout=10)
    assert answer.status_code == 201


def test_one_post(pusher: Any, base: str, store: Store) -> None:
    """A POST with digest and body is a whole upload."""
    blob = hash_bytes(DATA)
    answer = pusher.post(f"{base}/blobs/uploads/", params={"digest": blob.digest}, data=DATA, timeout=10)
    assert answer.status_code == 201
    assert store.has(blob.digest, blob.size)


def test_a_mount_needs_no_bytes(pusher: Any, base: str, weights: bytes) -> None:
    """A blob of another repository is there at once; one that is nowhere begins an upload."""
    query = {"mount": hash_bytes(weights).digest, "from": "library/demo"}
    answer = pusher.post(f"{base}/blobs/uploads/", params=query, timeout=10)
    assert answer.status_code == 201
    assert requests.head(answer.headers["Location"], timeout=10).headers["Content-Length"] == str(len(weights))
    query["mount"] = f"sha256:{'0' * 64}"
    assert pusher.post(f"{base}/blobs/uploads/", params=query, timeout=10).status_code == 202


@pytest.mark.parametrize("digest", [f"sha256:{'0' * 64}", "sha256:x", "", f"sha512:{'0' * 128}", "../x"])
def test_a_wrong_digest(pusher: Any, base: str, store: Store, digest: str) -> None:
    """Bytes that are not what was promised become no blob."""
    before = sorted(path.name for path in store.blobs_dir.iterdir())
    place = pusher.begin(base)
    answer = pusher.put(place, params={"digest": digest}, data=DATA, timeout=10)
    assert error(answer) == (400, "DIGEST_INVALID")
    pusher.delete(place, timeout=10)
    assert sorted(path.name for path in store.blobs_dir.iterdir()) == before


def test_cancel(pusher: Any, base: str, store: Store) -> None:
    """A cancelled upload leaves nothing and is unknown then."""
    place = pusher.begin(base)
    pusher.patch(place, data=DATA, timeout=10)
    assert leftovers(store)
    assert pusher.delete(place, timeout=10).status_code == 204
    assert leftovers(store) == []
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = pusher.request(method, place, params={"digest": hash_bytes(b"").digest}, timeout=10)
        assert error(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(pusher: Any, base: str) -> None:
    """An upload cannot be gone on with under another name."""
    place = pusher.begin(base).replace(REPOSITORY, "me/other")
    assert error(pusher.patch(place, data=b"x", timeout=10)) == (404, "BLOB_UPLOAD_UNKNOWN")


def _cut(writable: BackgroundServer, place: str, token: str, sent: bytes, claimed: int) -> None:
    """Send a piece's head and part of its body, then break the connection."""
    host, _, port = writable.address.partition(":")
    path = place.partition(writable.address)[2]
    head = f"PATCH {path} HTTP/1.1\r\nHost: {writable.address}\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Range: 0-{claimed - 1}\r\nContent-Length: {claimed}\r\n\r\n"
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(head.encode() + sent)


def test_a_cut_piece_may_be_sent_again(pusher: Any, base: str, writable: BackgroundServer, token: str) -> None:
    """A piece whose connection broke counts for nothing: the same piece can follow, as `ollama push` sends it."""
    place = pusher.begin(base)
    _cut(writable, place, token, DATA[:300_000], len(DATA))
    headers = {"Content-Range": f"0-{len(DATA) - 1}"}
    assert pusher.patch(place, data=DATA, headers=headers, timeout=10).status_code == 202
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, timeout=10)
    assert answer.status_code == 201


def test_a_client_that_stops_sending(pusher: Any, base: str, writable: BackgroundServer, token: str) -> None:
    """A body that does not come is given up after a while (2 s here), with 408, and the upload can go on."""
    place = pusher.begin(base)
    host, _, port = writable.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("PATCH", place.partition(writable.address)[2])
    connection.putheader("Content-Length", "1000")
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders(b"x" * 10)
    assert connection.getresponse().status == 408
    connection.close()
    assert pusher.get(place, timeout=10).headers["Range"] == "0-0"


def test_two_pushers_of_one_blob(pusher: Any, base: str, store: Store) -> None:
    """Both succeed, whoever is first, and readers meanwhile get the whole blob."""
    data = os.urandom(8_000_000)
    blob = hash_bytes(data)

    def push(_: int) -> int:
        with type(pusher)() as session:
            place = session.begin(base)
            return session.put(place, params={"digest": blob.digest}, data=data, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(push, range(4))) == [201] * 4
        found = list(pool.map(lambda _: requests.get(f"{base}/blobs/{blob.digest}", timeout=60).content, range(4)))
    assert found == [data] * 4
    assert leftovers(store) == []


def test_a_request_that_waited_for_its_upload(
    pusher: Any, base: str, writable: BackgroundServer, token: str, store: Store
) -> None:
    """A piece that comes while the upload is being finished is told that it has ended."""
    place, blob = pusher.begin(base), hash_bytes(DATA)
    path = f"{place.partition(writable.address)[2]}?digest={blob.digest}"
    connections = [http.client.HTTPConnection(writable.address, timeout=20) for _ in range(2)]
    for connection in connections:
        connection.putrequest("PUT", path)
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("Content-Length", str(len(DATA)))
        connection.endheaders(DATA[:1000])
    for connection in connections:
        connection.send(DATA[1000:])
    answers = [connection.getresponse() for connection in connections]
    assert sorted(answer.status for answer in answers) == [201, 404]
    for answer, connection in zip(answers, connections, strict=True):
        answer.read()
        connection.close()
    assert store.has(blob.digest, blob.size)


def test_gc_leaves_an_open_upload(pusher: Any, base: str, store: Store, name: Name) -> None:
    """A collection of any age while an upload is open does not touch it; it takes the blob when nobody names it."""
    store.manifest_path(name).with_name("broken").unlink()  # gc refuses to guess what it names
    place = pusher.begin(base)
    pusher.patch(place, data=DATA[:1000], timeout=10)
    store.gc(older_than=-1)
    assert len(leftovers(store)) == 1
    answer = pusher.put(place, params={"digest": hash_bytes(DATA).digest}, data=DATA[1000:], timeout=10)
    assert answer.status_code == 201
    assert hash_bytes(DATA).digest.replace(":", "-") in [one.path.name for one in store.gc(older_than=-1)]


def test_the_end_of_the_server_drops_uploads(store: Store, token: str, pusher: Any) -> None:
    """Staging files go with the server; those of a killed one go with the next sweep."""
    with BackgroundServer(store, settings=Settings(token=token)) as server:
        pusher.begin(f"http://{server.address}/v2/{REPOSITORY}")
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


def test_too_many_uploads(pusher: Any, base: str) -> None:
    """Uploads that are only begun do not fill the server: the next is refused, with when to come again."""
    places = [pusher.begin(base) for _ in range(MAX_OPEN)]
    answer = pusher.post(f"{base}/blobs/uploads/", timeout=10)
    assert error(answer) == (429, "TOOMANYREQUESTS")
    assert int(answer.headers["Retry-After"]) > 0
    pusher.delete(places[0], timeout=10)
    pusher.begin(base)


def test_what_the_disk_cannot_hold(pusher: Any, base: str, writable: BackgroundServer, token: str) -> None:
    """A piece that is larger than the free disk is refused before it comes."""
    place = pusher.begin(base)
    connection = http.client.HTTPConnection(writable.address, timeout=10)
    connection.putrequest("PATCH", place.partition(writable.address)[2])
    connection.putheader("Content-Length", str(10**17))
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 507
    assert "disk" in json.loads(answer.read())["errors"][0]["message"]
    connection.close()


def test_the_disk_fills_up_on_the_way(repository: Path, store: Store, token: str) -> None:
    """A stream whose length nobody knew is 507 where the disk takes no more of it, and nothing of it is kept."""
    with _process(repository, store.root, token, largest_file=len(DATA) // 2) as (address, _):
        place = f"http://{address}/v2/{REPOSITORY}/blobs/uploads/"
        params, headers = {"digest": hash_bytes(DATA).digest}, {"Authorization": f"Bearer {token}"}
        answer = requests.post(place, params=params, data=iter([DATA]), headers=headers, timeout=10)
    assert error(answer) == (507, "DENIED")
    assert not store.has(hash_bytes(DATA).digest)
    assert leftovers(store) == []


_SERVE = """
import resource
import sys
from pathlib import Path
from pipeline.serve import Settings, serve
from pipeline.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
serve(Store(Path(sys.argv[1])), "127.0.0.1", 0, lambda a: print(a, flush=True), Settings(token=sys.argv[2]))
"""


def _status(pid: int, key: str) -> int:
    """Read a figure of /proc/PID/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@contextlib.contextmanager
def _process(
    repository: Path, root: Path, token: str, largest_file: int = resource.RLIM_INFINITY
) -> Iterator[tuple[str, int]]:
    """Serve from a process of its own, whose files may have *largest_file* bytes; give its address and its number."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(root), token, str(largest_file)],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_blob_needs_no_memory(repository: Path, tmp_path: Path, token: str, pusher: Any) -> None:
    """While 300 MB are pushed, and pulled by three at once, the server grows by less than 40 MB."""
    piece, times = os.urandom(1_000_000), 300
    state: Callable[[], Iterator[bytes]] = lambda: (piece for _ in range(times))  # noqa: E731
    digest = hashlib.sha256()
    for part in state():
        digest.update(part)
    name = f"sha256:{digest.hexdigest()}"
    with _process(repository, tmp_path, token) as (address, pid):
        base = f"http://{address}/v2/{REPOSITORY}"
        place = pusher.begin(base)
        before = _status(pid, "VmHWM")
        assert pusher.put(place, params={"digest": name}, data=state(), timeout=300).status_code == 201
        pullers = [threading.Thread(target=_drain, args=(f"{base}/blobs/{name}",)) for _ in range(3)]
        for one in pullers:
            one.start()
        for one in pullers:
            one.join()
        assert _status(pid, "VmHWM") - before < 40_000_000


def test_a_body_that_unpacks(repository: Path, tmp_path: Path, token: str) -> None:
    """A small body that unpacks to 512 MB costs the server less than 150 MB, whether anybody reads it or not."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    headers = {"Content-Encoding": "deflate", "Authorization": f"Bearer {token}"}
    with _process(repository, tmp_path, token) as (address, pid):
        assert requests.get(f"http://{address}/v2/", timeout=10).status_code == 200
        before = _status(pid, "VmHWM")
        url = f"http://{address}/v2/{REPOSITORY}/manifests/latest"
        for method in ("GET", "PUT"):
            with contextlib.suppress(requests.ConnectionError):  # it may hang up on us
                requests.request(method, url, data=body, headers=headers, timeout=20)
        assert requests.get(f"http://{address}/v2/", timeout=10).status_code == 200
        assert _status(pid, "VmHWM") - before < 150_000_000


def _drain(url: str) -> None:
    with requests.get(url, stream=True, timeout=60) as answer:
        assert sum(len(part) for part in answer.iter_content(1 << 20)) == int(answer.headers["Content-Length"])


def test_a_connection_that_asks_nothing(writable: BackgroundServer) -> None:
    """A connection on which half a request comes and then nothing is closed after a while (2 s here)."""
    host, _, port = writable.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"GET /v2/ HTTP/1.1\r\nHost: local")
        assert sock.recv(100) == b""
