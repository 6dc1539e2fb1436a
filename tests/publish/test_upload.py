"""Blobs on their way to a registry, through a proxy that cuts, changes and refuses."""

from __future__ import annotations

import hashlib
import itertools
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import AccessError, FormatError, PipelineError
from pipeline.patience import Patience
from pipeline.publish import Published, Release, ReleaseEntry
from pipeline.publish.registry import RegistryTarget
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Store
from pipeline.types import Blob

CHUNK = 100_000
# More cuts can be tried by hand: REGISTRY_CUTS=500 make test ARGS="tests/publish/test_upload.py -k cut"
N_CUTS = int(os.environ.get("REGISTRY_CUTS", "12"))
DATA = hashlib.shake_256(b"a GGUF").digest(3 * CHUNK + 17)


@pytest.fixture
def proxy(oracle: Callable[[str], ModuleType]) -> Any:
    """The module with the faults."""
    return oracle("proxy")


def data_of(repository: str) -> bytes:
    """Return the GGUF of a repository of these tests."""
    return DATA + repository.encode()


class Line:
    """A registry behind a proxy; each publication goes to a repository of its own."""

    def __init__(self, registry: Any, front: Any, folder: Path, entry: Callable[..., ReleaseEntry], log: Any) -> None:
        self.registry, self.front = registry, front
        self._folder, self._entry, self._log = folder, entry, log
        self._numbers = itertools.count()
        self.sent: list[int] = []

    def publish(self, number: int | None = None, chunk_bytes: int = CHUNK) -> tuple[str, Published | PipelineError]:
        """Publish as Q4_K_M and latest; return the repository, and what came of it.

        Each *number* is another model, no blob of which has been sent.
        """
        number = next(self._numbers) if number is None else number
        model = f"demo-{number}"
        made = self._entry(self._folder / "model.gguf", data=data_of(f"me/{model}"))
        made = replace(made, licenses=(), messages=(), system=None, params={"seed": number}, parameter_count=number)
        target = RegistryTarget(urlsplit(f"http://{self.front.host}"), chunk_bytes)
        try:
            with target:
                return f"me/{model}", target.publish(Release("me", model, (made,)), self._log)
        except PipelineError as error:
            return f"me/{model}", error

    def shown(self, repository: str) -> dict[str, list[str]]:
        """Return what is visible of a repository."""
        visible: dict[str, list[str]] = self.registry.visible()
        return {name: digests for name, digests in visible.items() if name.startswith(f"{repository}:")}

    def is_whole(self, repository: str) -> bool:
        """Whether both tags are visible with the bytes that were sent."""
        shown, data = self.shown(repository), data_of(repository)
        return len(shown) == 2 and all(self.registry.blob(digests[0]) == data for digests in shown.values())


class OwnRegistry:
    """Our own registry, read as tests/oracle/docker_registry.py reads the other."""

    def __init__(self, host: str, store: Store) -> None:
        self.host, self._store = host, store

    def visible(self) -> dict[str, list[str]]:
        """Return the digests of each model's blobs, the GGUF's first, by "namespace/model:tag"."""
        return {
            f"{entry.name.repository}:{entry.name.tag}": [
                layer.blob.digest for layer in self._store.read_manifest(entry.name).all_layers
            ]
            for entry in self._store.list()
        }

    def blob(self, digest: str) -> bytes:
        """Return a blob's content."""
        return self._store.blob_path(digest).read_bytes()

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        return self._store.has(digest)


@pytest.fixture(params=[pytest.param("docker-registry", marks=pytest.mark.registry), "ours"])
def line(
    request: pytest.FixtureRequest,
    proxy: Any,
    tmp_path: Path,
    entry: Callable[..., ReleaseEntry],
    silent_log: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Line]:
    """A registry behind a proxy: docker-registry, and our own."""
    with ExitStack() as stack:
        if request.param == "ours":
            monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", "a token")
            store = Store(tmp_path / "own")
            server = stack.enter_context(BackgroundServer(store, settings=Settings(token="a token")))  # noqa: S106
            registry: Any = OwnRegistry(server.address, store)
        else:
            registry = request.getfixturevalue("docker_registry")()
        front = stack.enter_context(proxy.fault_proxy(registry.host))
        yield Line(registry, front, tmp_path, entry, silent_log)


@pytest.fixture
def steps(line: Line) -> list[Any]:
    """The requests of a publication that nothing disturbs."""
    with line.front.failing(lambda *_: None):
        line.publish()
        return list(line.front.seen)


def _requests(line: Line, method: str) -> list[Any]:
    return [seen for seen in line.front.seen if seen.method == method]


def test_large_blobs_go_in_chunks(line: Line, steps: list[Any]) -> None:
    """What is larger than a chunk goes in chunks, each starting where the last ended; the rest goes whole."""
    assert line.is_whole("me/demo-0")
    bodies = [seen.sent for seen in steps if seen.method == "PATCH"]
    assert len(bodies) == 4
    assert [round(size, -4) for size in bodies] == [CHUNK, CHUNK, CHUNK, 0]


def test_blobs_that_are_there_are_not_sent(line: Line) -> None:
    """A second publication of the same sends no blob."""
    line.publish(0)
    with line.front.failing(lambda *_: None):
        line.publish(0)
        assert not _requests(line, "PATCH")
        assert not _requests(line, "POST")
    assert line.is_whole("me/demo-0")


@pytest.mark.parametrize("status", [405, 501, 400])
def test_a_registry_without_chunks(line: Line, proxy: Any, status: int) -> None:
    """Where chunks are refused, the blob goes whole, and no other chunk is tried."""
    refused = proxy.Fault(answer=proxy.answer(status))
    with line.front.failing(lambda _number, method, _path: refused if method == "PATCH" else None):
        repository, _ = line.publish()
        assert len(_requests(line, "PATCH")) == 1
    assert line.is_whole(repository)


def test_a_registry_that_goes_on_where_it_was(line: Line, proxy: Any) -> None:
    """After a cut, a session that is not lost is gone on with at the byte that the registry names."""
    cut = {"left": 1}

    def plan(_number: int, method: str, _path: str) -> Any:
        """Let a whole chunk arrive, and lose the answer to it."""
        if method == "PATCH" and cut["left"]:
            cut["left"] -= 1
            return proxy.Fault(cut_answer=0)
        return None

    with line.front.failing(plan):
        repository, _ = line.publish()
        chunks = [seen.sent for seen in _requests(line, "PATCH")]
        statuses = [seen for seen in _requests(line, "GET") if "/uploads/" in seen.path]
    assert line.is_whole(repository)
    assert len(statuses) == 1
    assert len(chunks) == (4 if isinstance(line.registry, OwnRegistry) else 5)  # docker-registry loses the session


def test_429_is_waited_for(line: Line, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that asks to come again in seven seconds gets seven seconds, and then the rest."""
    waited: list[float] = []
    patience = Patience(pause=lambda _event, seconds: waited.append(seconds))
    monkeypatch.setattr("pipeline.publish._wire.PATIENCE", patience)
    slow = proxy.Fault(answer=proxy.answer(429, Retry_After="7"))
    with line.front.failing(lambda number, *_: slow if number in (3, 9) else None):
        repository, _ = line.publish()
    assert line.is_whole(repository)
    assert waited == [7.0, 7.0]


def test_a_changed_byte_is_sent_again(line: Line, proxy: Any) -> None:
    """A byte that changes on its way is noticed by the registry, and everything is sent anew."""
    changed = iter([proxy.Fault(flip=5)])
    with line.front.failing(lambda _n, method, _path: next(changed, None) if method == "PATCH" else None):
        repository, _ = line.publish()
        assert len(_requests(line, "PATCH")) == 8
    assert line.is_whole(repository)


def test_an_expired_session_is_begun_anew(line: Line, proxy: Any) -> None:
    """A session that the registry has forgotten is replaced by a fresh one."""
    gone = iter([None, None, proxy.Fault(answer=proxy.answer(404, '{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'))])
    with line.front.failing(lambda _n, method, _path: next(gone, None) if method == "PATCH" else None):
        repository, _ = line.publish()
    assert line.is_whole(repository)


@pytest.mark.parametrize("chunk_bytes", [CHUNK, 10 * CHUNK])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1] + b"!", lambda data: b"!" + data[1:], lambda data: data[:-1]]
)
def test_a_file_that_changes_is_never_kept(
    line: Line, chunk_bytes: int, change: Callable[[bytes], bytes], entry: Callable[..., ReleaseEntry], tmp_path: Path
) -> None:
    """Bytes that are not those of the digest are noticed before the registry has all of them, whole or in chunks."""
    data = data_of("me/demo-0")
    made = entry(tmp_path / "model.gguf", data=data)
    made.gguf.write_bytes(change(data))
    line._entry = lambda *_args, **_kwargs: made
    repository, error = line.publish(chunk_bytes=chunk_bytes)
    assert isinstance(error, FormatError)
    assert line.shown(repository) == {}
    for one in (data, change(data)):
        assert not line.registry.has(f"sha256:{hashlib.sha256(one).hexdigest()}")


@pytest.mark.registry
def test_memory_is_constant(docker_registry: Callable[..., Any], tmp_path: Path, silent_log: Any) -> None:
    """Sending a file takes as much memory as its pieces, whatever its size."""
    path, size = tmp_path / "large.gguf", 150_000_000
    with path.open("wb") as file:
        file.truncate(size)
    digest = hashlib.sha256(bytes(size)).hexdigest()
    entry = ReleaseEntry(("F16",), path, Blob(f"sha256:{digest}", size), "llama", 1, "F16")
    registry = docker_registry()
    with RegistryTarget(urlsplit(registry.url)) as target:
        tracemalloc.start()
        target.publish(Release("me", "large", (entry,)), silent_log)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8_000_000
    assert registry.has(f"sha256:{digest}")


@settings(max_examples=N_CUTS, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 200), place=st.floats(0, 1), is_answer=st.booleans())
@example(step=0, place=0.0, is_answer=False)
def test_a_cut_anywhere_is_survived(
    line: Line, steps: list[Any], proxy: Any, step: int, place: float, is_answer: bool
) -> None:
    """One cut, at any byte of any request or answer, costs a try: the publication ends whole."""
    number = step % len(steps)
    fault = _cut(proxy, steps[number], place, is_answer)
    with line.front.failing(lambda at, *_: fault if at == number else None):
        repository, result = line.publish()
    assert isinstance(result, Published)
    assert line.is_whole(repository)


@settings(max_examples=N_CUTS, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 200), place=st.floats(0, 1), is_answer=st.booleans())
@example(step=-1, place=0.5, is_answer=True)
def test_a_cut_for_good_leaves_nothing_half(
    line: Line, steps: list[Any], proxy: Any, step: int, place: float, is_answer: bool
) -> None:
    """From any byte on nothing goes through: nothing is visible, or what is is whole and the error names it."""
    number = step % len(steps)
    fault, dead = _cut(proxy, steps[number], place, is_answer), proxy.Fault(cut_request=0)
    with line.front.failing(lambda at, *_: fault if at == number else dead if at > number else None):
        repository, result = line.publish()
    shown = line.shown(repository)
    if isinstance(result, Published):  # only the last question, whether Ollama can pull, got no answer
        assert line.is_whole(repository)
        assert "not checked" in {check.state for check in result.checks}
        return
    assert isinstance(result, AccessError)
    assert result.hint
    for name, digests in shown.items():
        assert name in str(result)
        assert line.registry.blob(digests[0]) == data_of(repository)
        assert all(line.registry.has(digest) for digest in digests)


def _cut(proxy: Any, step: Any, place: float, is_answer: bool) -> Any:
    if is_answer:
        return proxy.Fault(cut_answer=int(place * (step.received - 1)))
    return proxy.Fault(cut_request=int(place * (step.sent - 1)))
