"""Everything that can go wrong while a file comes, with the real client against a real server."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import AccessError, ResourceError
from pipeline.source import open_source
from pipeline.source._transfer import is_sound

MODEL = "org/m"
WEIGHTS = "model.safetensors"
SIZE = 3_000_000
LFS = (".safetensors",)


@pytest.fixture
def files(files: dict[str, bytes], weights: Callable[[dict[str, int]], bytes]) -> dict[str, bytes]:
    """The complete repository with 3 MB of weights."""
    return {**files, WEIGHTS: weights({"w": SIZE // 2})}


@pytest.fixture(params=["redirected", "direct"])
def repo(request: pytest.FixtureRequest, hub: Any, files: dict[str, bytes]) -> Any:
    """The repository, once with its weights in LFS on another origin, once with all files in git."""
    return hub.repo(MODEL, files, lfs=LFS if request.param == "redirected" else ())


def _weights(source: Any) -> bytes:
    return (source.folder / WEIGHTS).read_bytes()


def _partials() -> list[Path]:
    return list(Path(os.environ["HF_HOME"]).rglob("*.incomplete"))


CUTS = [0, 1, 7, 8, 100, 65_535, 65_536, 1_234_567, SIZE, "last"]


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("quiet", [False, True], ids=["broken", "ended"])
def test_connection_cut_at_any_byte(
    at: Any, quiet: bool, repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]
) -> None:
    """A body that breaks off, or just ends, is gone on with from that byte; no byte comes twice."""
    size = len(files[WEIGHTS])
    hub.spoil(WEIGHTS, cut=True, quiet=quiet, at=size - 1 if at == "last" else at)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == size
    assert pauses == [1.0]
    assert _partials() == []


def test_many_cuts(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]) -> None:
    """Each try that gets ahead starts the count anew, so twenty cuts do not stop a download."""
    hub.spoil(WEIGHTS, times=20, cut=True, at=100_000)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])
    assert pauses == [1.0] * 20


def test_cuts_without_progress_end(
    repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]
) -> None:
    """Five tries without a byte between them are enough; the next run goes on from what came before."""
    hub.spoil(WEIGHTS, cut=True, at=1_000_000)
    hub.spoil(WEIGHTS, times=5, cut=True, at=0)
    with pytest.raises(AccessError, match=r"(?s)run the command again|check the network"):
        fetch(MODEL)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0][: len(pauses)]
    assert [p.stat().st_size for p in _partials()] == [1_000_000]
    hub.body_faults.clear()
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])


def test_server_restart(repo: Any, hub: Any, server: Any, files: dict[str, bytes], fetch: Any, pauses: Any) -> None:
    """A server that goes down in the middle and comes up two tries later costs what was on its way, no more."""
    held = hub.hold(WEIGHTS, 2_000_000)

    def at_pause() -> None:
        if len(pauses) == 3:
            server.up()

    pauses.at_pause = at_pause
    with _in_thread(lambda: fetch(MODEL)) as result:
        assert held.reached.wait(30)
        server.down()
        held.released.set()
    assert _weights(result()) == files[WEIGHTS]
    assert len(pauses) == 3
    # What the sockets held when it went down is lost; from the beginning again would be two million bytes more.
    assert hub.sent[WEIGHTS] <= len(files[WEIGHTS]) + 1_000_000


def test_server_that_stands_still(
    repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, pauses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that does not go on within the client's own time limit is asked for again, from that byte."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    held = hub.hold(WEIGHTS, 1_000_000)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.downloads(WEIGHTS)[-1].headers["Range"] == "bytes=1000000-"
    assert pauses == [1.0]
    held.released.set()


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({"Retry_After": "17"}, [17.0]),
        ({"RateLimit": '"resolvers";r=0;t=41'}, [42.0]),
        ({"Date": "Mon, 01 Jan 2024 00:00:00 GMT", "Retry_After": "Mon, 01 Jan 2024 00:00:09 GMT"}, [9.0]),
        ({"Retry_After": "soon"}, [1.0]),
        ({"Retry_After": "0"}, [1.0]),
        ({}, [1.0]),
    ],
    ids=["seconds", "ratelimit", "date", "nonsense", "zero", "silent"],
)
@pytest.mark.parametrize(
    "path", ["/api/models", f"resolve/{{}}/{WEIGHTS}", f"/{WEIGHTS}?sig"], ids=["api", "head", "body"]
)
def test_rate_limits_are_kept(
    headers: dict[str, str], waits: list[float], path: str, hub: Any, files: dict[str, bytes], fetch: Any, pauses: Any
) -> None:
    """A 429 anywhere is waited out for as long as the server asks."""
    repo = hub.repo(MODEL, files, lfs=LFS)
    hub.fail(path.format(repo.refs["main"]), 429, **headers)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert pauses == waits


def test_a_wait_that_is_too_long_is_told(hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]) -> None:
    """Who asks for more than five minutes gets no second request; the message says when to come back."""
    hub.repo(MODEL, files, lfs=LFS)
    hub.fail(f"/{WEIGHTS}", 429, Retry_After="3600")
    with pytest.raises(AccessError, match="run again in 3600 seconds"):
        fetch(MODEL)
    assert pauses == []


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
@pytest.mark.parametrize("path", ["/api/models", "/config.json", f"/{WEIGHTS}?sig"], ids=["api", "small", "body"])
def test_server_errors_pass(
    status: int, path: str, hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]
) -> None:
    """A server in trouble is asked again, after waits that double."""
    hub.repo(MODEL, files, lfs=LFS)
    hub.fail(path, status, times=2)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusals_are_final(status: int, hub: Any, files: dict[str, bytes], fetch: Any, pauses: list[float]) -> None:
    """An answer that will not change is not asked for again."""
    hub.repo(MODEL, files, lfs=LFS)
    hub.fail(f"/{WEIGHTS}?sig", status)
    with pytest.raises(AccessError, match=f"HTTP {status}"):
        fetch(MODEL)
    assert pauses == []


def test_wrong_hash_is_refused(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """Bytes that are not what was announced get no name and stay nowhere, and the next run succeeds."""
    hub.spoil(WEIGHTS, spoil=True)
    with pytest.raises(
        AccessError, match=r"(?s)not what the Hub announced.*expected: (sha256|git blob) [0-9a-f]{40,64}"
    ):
        fetch(MODEL)
    assert [p.stat().st_size for p in _partials()] == [0]
    assert _weights(fetch(MODEL)) == files[WEIGHTS]


def test_small_files_are_hashed_too(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A config that changed on the way is refused, by its git blob id."""
    hub.repo(MODEL, files)
    hub.spoil("config.json", spoil=True)
    with pytest.raises(AccessError, match=r"(?s)config\.json.*git blob"):
        fetch(MODEL)


def test_damage_on_this_disk_costs_a_download(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """If what an earlier run left was damaged since, all of it comes again, in the same run."""
    _break_off_at(1_000_000, hub, fetch)
    (partial,) = _partials()
    with partial.open("r+b") as file:
        file.seek(500_000)
        file.write(b"?")
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == 2 * len(files[WEIGHTS])


@pytest.mark.parametrize("left", [b"", b"x", bytes(SIZE * 2)], ids=["empty", "wrong", "too long"])
def test_whatever_is_left_there(left: bytes, repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """The beginning that is found may be anything; what comes out is right."""
    _break_off_at(1_000_000, hub, fetch)
    _partials()[0].write_bytes(left)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]


def _break_off_at(at: int, hub: Any, fetch: Any) -> None:
    """Run a download that ends after *at* bytes of the weights."""
    hub.spoil(WEIGHTS, cut=True, at=at)
    hub.spoil(WEIGHTS, times=5, cut=True, at=0)
    with pytest.raises(AccessError):
        fetch(MODEL)
    hub.body_faults.clear()


def test_next_run_asks_for_the_rest_only(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """Another run asks by Range; where ETags are those of the Hub, with If-Range."""
    _break_off_at(1_000_000, hub, fetch)
    hub.asked.clear()
    fetch(MODEL)
    (asked,) = hub.downloads(WEIGHTS)
    assert asked.headers["Range"] == "bytes=1000000-"
    expected = None if repo.lfs else f'"{repo.etag(WEIGHTS, files[WEIGHTS])}"'
    assert asked.headers.get("If-Range") == expected


def test_changed_content_starts_anew(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """If the file has another ETag in the next run, nothing of the old one gets into the new."""
    _break_off_at(1_000_000, hub, fetch)
    new = files[WEIGHTS][:-1] + b"!"
    repo.commits[repo.refs["main"]][WEIGHTS] = new
    hub.sent.clear()
    assert _weights(fetch(MODEL)) == new
    assert hub.sent[WEIGHTS] == len(new)


def test_change_in_the_middle_is_refused(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, pauses: Any) -> None:
    """If the file changes between two tries of one run, that is said, and the next run takes the new one."""
    commit, new = repo.commits[repo.refs["main"]], files[WEIGHTS] + b"!"
    pauses.at_pause = lambda: commit.update({WEIGHTS: new})
    hub.spoil(WEIGHTS, cut=True, at=1_000_000)
    with pytest.raises(AccessError, match="changed on the Hub meanwhile"):
        fetch(MODEL)
    assert _weights(fetch(MODEL)) == new


def test_same_content_in_another_commit(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """What one commit left half way goes on for another commit with the same file, and then comes no more."""
    _break_off_at(1_000_000, hub, fetch)
    repo.commit({**files, "README.md": b"new"})
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])
    repo.commit({**files, "README.md": b"newer"})
    hub.asked.clear()
    assert (fetch(MODEL, update=True).folder / "README.md").read_bytes() == b"newer"
    assert [a.path for a in hub.asked if a.path.endswith(WEIGHTS)] == []


def test_content_without_its_link(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """What is whole in the cache, but not yet linked from the commit, is linked; not even its header comes again."""
    pointer = fetch(MODEL).folder / WEIGHTS
    pointer.unlink()
    hub.asked.clear()
    with open_source(MODEL, weights="stream") as opened:
        assert opened.remote_headers == {}
        assert _weights(opened.source) == files[WEIGHTS]
    assert [a.path for a in hub.asked if a.path.endswith(WEIGHTS)] == []
    assert _partials() == []


def test_a_file_of_unknown_size_is_looked_for(tmp_path: Path) -> None:
    """A file whose size the Hub does not say is there only if it is."""
    assert not is_sound(tmp_path / "x", None)
    (tmp_path / "x").write_bytes(b"1")
    assert is_sound(tmp_path / "x", None)
    assert not is_sound(tmp_path / "x", 2)


def test_server_without_ranges(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A 200 in answer to a Range means all of it, from the start."""
    hub.spoil(WEIGHTS, cut=True, at=1_000_000)
    hub.spoil(WEIGHTS, whole=True)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS]) + 1_000_000


def test_wrong_range_is_not_taken(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A 206 for another part than was asked for is thrown away, and all is asked for."""
    hub.spoil(WEIGHTS, cut=True, at=1_000_000)
    hub.spoil(WEIGHTS, lie=1)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]


def test_range_not_satisfiable_starts_anew(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A 416, which a store gives for what it lost, is no end."""
    hub.repo(MODEL, files, lfs=LFS)
    _break_off_at(1_000_000, hub, fetch)
    hub.fail("/lfs/", 416)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]


def test_token_stays_with_the_hub(
    hub: Any, files: dict[str, bytes], fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is sent to the Hub, and to no other origin that it redirects to."""
    hub.repo(MODEL, files, lfs=LFS).gated = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.spoil(WEIGHTS, cut=True, at=1_000_000)
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    elsewhere = [a for a in hub.asked if a.host.startswith("localhost")]
    here = [a for a in hub.asked if a.host.startswith("127.0.0.1")]
    assert [a.headers.get("Authorization") for a in elsewhere] == [None, None]
    assert {a.headers.get("Authorization") for a in here} == {f"Bearer {hub.token}"}


def test_token_does_not_come_back(
    hub: Any, files: dict[str, bytes], fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the other origin redirects once more, nobody behind it sees the token."""
    hub.repo(MODEL, files, lfs=LFS)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    again = hub.answer(f"/{MODEL}/resolve/main/{WEIGHTS}", "")
    hub.faults.append(("?sig=1", type(again)(302, {"Location": again.headers["Location"] + "&again"})))
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    stored = [a for a in hub.asked if a.path.startswith("/lfs/")]
    assert len(stored) == 2
    assert not any("Authorization" in a.headers for a in stored)


CODE = "import sys; from pipeline.source import resolve; print(resolve(sys.argv[1]).folder)"


@pytest.fixture
def start(repository: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that fetches a model, with the settings of this test."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str = CODE, model: str = MODEL) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(repository), "HF_HUB_DISABLE_TELEMETRY": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, model], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("at", [100_000, 2_500_000])
def test_killed_in_the_middle(at: int, repo: Any, hub: Any, files: dict[str, bytes], fetch: Any, start: Any) -> None:
    """After SIGKILL the next process goes on with the bytes on disk: no byte is sent twice."""
    held = hub.hold(WEIGHTS, at)
    process = start()
    assert held.reached.wait(30)
    _until(lambda: [p.stat().st_size for p in _partials() if p.stat().st_size] == [at])
    process.kill()
    process.wait()
    sent = hub.sent[WEIGHTS]
    fetched = start()
    output, errors = fetched.communicate(timeout=60)
    assert fetched.returncode == 0, errors
    assert (Path(output.strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert sent == at
    assert hub.downloads(WEIGHTS)[-1].headers["Range"] == f"bytes={at}-"
    assert hub.sent[WEIGHTS] - sent == len(files[WEIGHTS]) - at


def test_two_processes_at_once(repo: Any, hub: Any, files: dict[str, bytes], start: Any) -> None:
    """Two processes that want the same model get it, and it is sent once."""
    held = hub.hold(WEIGHTS, 1_000_000)
    first = start()
    assert held.reached.wait(30)
    second = start(
        CODE.replace("sys.argv[1]", "sys.argv[1], log=lambda line: print(line, file=sys.stderr, flush=True)")
    )
    assert second.stderr is not None
    assert second.stderr.readline() == f"another process downloads {WEIGHTS}; waiting for it\n"
    held.released.set()
    folders = {process.communicate(timeout=60)[0].strip() for process in (first, second)}
    assert (first.returncode, second.returncode) == (0, 0)
    (folder,) = folders
    assert (Path(folder) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])
    assert _partials() == []


def test_the_other_process_is_killed(repo: Any, hub: Any, files: dict[str, bytes], start: Any) -> None:
    """Who waits for another process takes over where that one died."""
    held = hub.hold(WEIGHTS, 1_000_000)
    first = start()
    assert held.reached.wait(30)
    _until(lambda: any(p.stat().st_size == 1_000_000 for p in _partials()))
    second = start(
        CODE.replace("sys.argv[1]", "sys.argv[1], log=lambda line: print(line, file=sys.stderr, flush=True)")
    )
    assert second.stderr is not None
    second.stderr.readline()
    first.kill()
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert (Path(output.strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
from pipeline.errors import ResourceError
from pipeline.source import resolve
try:
    resolve(sys.argv[1])
except ResourceError as error:
    print(error)
"""


def test_file_too_large_for_the_disk(hub: Any, files: dict[str, bytes], fetch: Any, start: Any) -> None:
    """If the system takes no more bytes, that is said as such; with room, the next run goes on."""
    hub.repo(MODEL, files, lfs=LFS)
    output, _ = start(LIMITED).communicate(timeout=60)
    assert "the disk is full" in output
    assert "HF_HOME" in output
    (partial,) = _partials()
    kept = partial.stat().st_size
    assert kept == 1_500_000
    hub.sent.clear()
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS]) - kept


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 8 MB with the cache on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    monkeypatch.setenv("HF_HOME", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_disk_that_fills_up_meanwhile(small_disk: Path, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """ENOSPC in the middle is a ResourceError; when there is room again, the download goes on."""
    hub.repo(MODEL, files, lfs=LFS)
    held = hub.hold(WEIGHTS, 1_000_000)
    hog = small_disk / "hog"
    with _in_thread(lambda: fetch(MODEL)) as result:
        assert held.reached.wait(30)
        _until(lambda: any(p.stat().st_size > 500_000 for p in _partials()))
        with hog.open("wb", buffering=0) as file:
            assert _fill(file) == errno.ENOSPC
        held.released.set()
    with pytest.raises(ResourceError, match=r"(?s)disk is full.*HF_HOME"):
        result()
    hog.unlink()
    (kept,) = (p.stat().st_size for p in _partials())
    assert 0 < kept < len(files[WEIGHTS])
    hub.sent.clear()
    assert _weights(fetch(MODEL)) == files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS]) - kept


def test_disk_that_is_too_small(small_disk: Path, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """What cannot fit is refused before its first byte; the bytes that an earlier run left count as there."""
    files[WEIGHTS] += bytes(9_000_000)
    hub.repo(MODEL, files, lfs=LFS)
    with pytest.raises(ResourceError, match=r"(?s)not enough disk space.*12,0\d\d,\d\d\d bytes"):
        fetch(MODEL)
    assert hub.sent[WEIGHTS] == 0


def _fill(file: Any) -> int | None:
    try:
        while True:
            file.write(bytes(65_536))
    except OSError as error:
        return error.errno


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Make *folder* read-only, for root by mounting it so, as its rights do not bind that user."""
    if os.geteuid() == 0:
        mount = "mount --bind {0} {0} && mount -o remount,bind,ro {0}".format(shlex.quote(str(folder)))
        if subprocess.run(["sh", "-c", mount], check=False).returncode:
            pytest.skip("root, and yet not allowed to mount")
        yield
        subprocess.run(["umount", "--lazy", folder], check=True)
        return
    folders = [p for p in (folder, *folder.rglob("*")) if p.is_dir() and not p.is_symlink()]
    for path in folders:
        path.chmod(0o555)
    yield
    for path in folders:
        path.chmod(0o755)


def test_read_only_cache(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A full cache serves though nothing can be written; a missing file is refused with what to do."""
    home = Path(os.environ["HF_HOME"])
    repo = hub.repo(MODEL, files, lfs=LFS)
    source = fetch(MODEL)
    with _read_only(home):
        assert fetch(MODEL) == source
        assert fetch(MODEL, update=True, rehash=True) == source
        repo.commit({**files, WEIGHTS: files[WEIGHTS] + b"!"})
        with pytest.raises(AccessError, match=r"(?s)cache folder cannot be written.*HF_HOME"):
            fetch(MODEL, update=True)


def test_the_client_sees_a_full_cache(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """What was fetched here is, for the real client, as if it had fetched it: no request, same files, same layout."""
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    source = fetch(MODEL)
    cache = Path(os.environ["HF_HOME"]) / "hub"
    names = [str(p.relative_to(source.folder)) for p in source.folder.rglob("*") if p.is_file()]
    theirs = cache.parent / "theirs"
    for name in names:
        hf_hub_download(MODEL, name, endpoint=hub.url, cache_dir=theirs)
    assert _layout(cache) == _layout(theirs)
    hub.requests.clear()
    for name in names:
        path = hf_hub_download(MODEL, name, revision=source.commit, endpoint=hub.url, cache_dir=cache)
        assert path == str(source.folder / name)
    local = snapshot_download(MODEL, local_files_only=True, endpoint=hub.url, cache_dir=cache)
    assert local == str(source.folder)
    assert hub.requests == []
    info = scan_cache_dir(cache)
    assert not info.warnings
    (found,) = info.repos
    assert (found.repo_id, found.nb_files, {r.commit_hash for r in found.revisions}) == (
        MODEL,
        len(names),
        {source.commit},
    )


def _layout(cache: Path) -> dict[str, str]:
    """Describe every file below *cache* but locks and the client's note for backup programs."""
    found = {}
    for path in sorted(cache.rglob("*")):
        name = str(path.relative_to(cache))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and not name.startswith((".locks", "CACHEDIR")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() + f" {path.stat().st_mode:o}"
    return found


def test_size_of_what_is_there_is_checked(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A file in the cache that has another size than the Hub says is fetched again."""
    blob = (fetch(MODEL).folder / WEIGHTS).resolve()
    blob.write_bytes(files[WEIGHTS][:-1])
    assert _weights(fetch(MODEL)) == files[WEIGHTS]


def test_hash_of_what_is_there_is_checked_on_request(repo: Any, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A file of the right size is taken as it is, unless hashing is asked for."""
    blob = (fetch(MODEL).folder / WEIGHTS).resolve()
    damaged = b"?" + files[WEIGHTS][1:]
    blob.write_bytes(damaged)
    assert _weights(fetch(MODEL)) == damaged
    lines: list[str] = []
    assert _weights(fetch(MODEL, rehash=True, log=lines.append)) == files[WEIGHTS]
    assert lines == [f"{WEIGHTS} is damaged in the cache, and is downloaded again"]
    hub.requests.clear()
    fetch(MODEL, rehash=True)
    assert hub.requests == []


def test_ctrl_c_ends_at_once(repo: Any, hub: Any, start: Any) -> None:
    """A process that is interrupted while a server stands still does not wait for it."""
    held = hub.hold(WEIGHTS, 1_000_000)
    process = start()
    assert held.reached.wait(30)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode not in (0, None)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def _in_thread(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Do *work* in a thread while the block runs; what is given returns its result, or raises its error."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future.result
