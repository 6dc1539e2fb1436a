"""Headers first, weights later."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.errors import AccessError, FormatError, PipelineError, UnsupportedError
from pipeline.source import Patience, open_source

MODEL = "org/m"
LFS = (".safetensors",)
NAMES = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
Weights = Callable[[dict[str, int]], bytes]


@pytest.fixture(params=["redirected", "direct"])
def repo(request: pytest.FixtureRequest, hub: Any, shards: dict[str, bytes]) -> Any:
    """A repository with three shards of 3 MB, in LFS on another origin, or in git."""
    return hub.repo(MODEL, shards, lfs=LFS if request.param == "redirected" else ())


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("download")]


def test_a_plan_needs_no_weights(repo: Any, hub: Any, shards: dict[str, bytes], tmp_path: Path) -> None:
    """With weights "none" every tensor is known from the headers, and little more than those is sent."""
    with open_source(MODEL, weights="none") as opened:
        folder = opened.source.folder
        assert sorted(p.name for p in opened.remote_headers) == NAMES
        remote = open_checkpoint(folder, opened.remote_headers)
        assert not list(folder.glob("*.safetensors"))
        with pytest.raises(PipelineError, match="not to be downloaded"):
            opened.wait(folder / NAMES[0])
        opened.wait(folder / "config.json")
    assert sum(hub.sent[n] for n in NAMES) == 3 * 2**17
    for name in (*NAMES, "config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(shards[name])
    local = open_checkpoint(tmp_path)
    assert [(t.name, t.shape, t.offset, t.path.name) for t in remote.tensors.values()] == [
        (t.name, t.shape, t.offset, t.path.name) for t in local.tensors.values()
    ]


def test_a_second_plan_asks_nothing(repo: Any, hub: Any) -> None:
    """Headers stay in the cache: the next plan makes no request at all, even offline."""
    with open_source(MODEL, weights="none") as opened:
        first = opened.remote_headers
    hub.requests.clear()
    with open_source(MODEL, weights="none") as opened:
        assert opened.remote_headers == first
    assert hub.requests == []


def test_damaged_headers_come_again(repo: Any, hub: Any) -> None:
    """What lies in the cache for a header and is none is not taken."""
    with open_source(MODEL, weights="none") as opened:
        first = opened.remote_headers
    for partial in Path(os.environ["HF_HOME"]).rglob("*.incomplete"):
        partial.write_bytes(bytes(100))
    with open_source(MODEL, weights="none") as opened:
        assert opened.remote_headers == first


def test_no_byte_comes_twice(repo: Any, hub: Any, shards: dict[str, bytes]) -> None:
    """The headers that came first are the beginning of the files that come later."""
    with open_source(MODEL, weights="none"):
        pass
    with open_source(MODEL, weights="stream") as opened:
        for name in NAMES:
            opened.wait(opened.source.folder / name)
            assert (opened.source.folder / name).read_bytes() == shards[name]
    assert {n: hub.sent[n] for n in NAMES} == {n: len(shards[n]) for n in NAMES}


def test_a_header_that_comes_after_the_file_is_not_left(repo: Any, hub: Any) -> None:
    """Where another process has brought the whole file meanwhile, its beginning is not put beside it."""
    held = hub.hold(NAMES[0], 10)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(_headers)
        assert held.reached.wait(60)
        with open_source(MODEL, weights="stream") as opened:
            for name in NAMES:
                opened.wait(opened.source.folder / name)
        held.released.set()
        assert len(late.result(60)) == len(NAMES)
    assert list(Path(os.environ["HF_HOME"]).rglob("*.incomplete")) == []


def _headers() -> Any:
    with open_source(MODEL, weights="none") as opened:
        return opened.remote_headers


@pytest.mark.parametrize("whole", [False, True], ids=["ranges", "no ranges"])
def test_long_header(whole: bool, hub: Any, files: dict[str, bytes], weights: Weights) -> None:
    """A header that is longer than the first guess is asked for again, from where it broke off."""
    tensors = {f"a tensor with a long name, number {i:05}": 1 for i in range(3_000)}
    files["model.safetensors"] = weights(tensors)
    hub.repo(MODEL, files, lfs=LFS)
    if whole:
        hub.spoil("model.safetensors", times=2, whole=True)
    with open_source(MODEL, weights="none") as opened:
        assert len(open_checkpoint(opened.source.folder, opened.remote_headers).tensors) == 3_000
    (head,) = opened.remote_headers.values()
    assert len(head.data) > 2**17
    ranges = [a.headers["Range"] for a in hub.downloads("model.safetensors")]
    assert ranges == ["bytes=0-131071", f"bytes=131072-{len(head.data) - 1}"]


BAD_HEADS = {
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "empty": b"",
    "short": b"\1",
    "impossible": struct.pack("<Q", 2**40) + b"{" * 100,
    "cut": struct.pack("<Q", 200) + b"{" * 100,
    "no json": struct.pack("<Q", 3) + b"{ab" + bytes(100),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_bad_headers_are_the_readers_business(case: str, hub: Any, files: dict[str, bytes]) -> None:
    """What is no header comes through as it is, and the checkpoint's strict reader says what is wrong with it."""
    files["model.safetensors"] = BAD_HEADS[case]
    hub.repo(MODEL, files)
    for _ in range(2):
        with open_source(MODEL, weights="none") as opened, pytest.raises(FormatError, match=r"model\.safetensors"):
            open_checkpoint(opened.source.folder, opened.remote_headers)


def test_faults_while_headers_come(repo: Any, hub: Any, patience: Patience, pauses: list[float]) -> None:
    """Broken connections, wrong parts and servers in trouble are survived here too."""
    hub.spoil(NAMES[0], cut=True, at=10)
    hub.spoil(NAMES[1], lie=5)
    hub.fail(f"/{NAMES[2]}", 503)
    with open_source(MODEL, weights="none", patience=patience) as opened:
        assert len(open_checkpoint(opened.source.folder, opened.remote_headers).tensors) == 9
    assert pauses == [1.0] * 3


def test_conversion_runs_while_shards_come(repo: Any, hub: Any, shards: dict[str, bytes]) -> None:
    """The first shard is read while the second is still on its way; each is whole when it is opened."""
    held = hub.hold(NAMES[1], 1_000_000)
    with open_source(MODEL, weights="none"):
        pass  # so that the next download of the second shard is that of its body
    hub.body_faults.append((NAMES[1], held))
    hub.body_faults[:] = hub.body_faults[-1:]
    with open_source(MODEL, weights="stream") as opened, TensorReader(ready=opened.wait) as reader:
        tensors = open_checkpoint(opened.source.folder, opened.remote_headers).tensors
        out = np.empty(tensors["w0.0"].n_bytes, np.uint8)
        reader.read_bytes(tensors["w0.0"], 0, out)
        first = tensors["w0.0"]
        assert out.tobytes() == shards[NAMES[0]][first.offset : first.offset + first.n_bytes]
        assert held.reached.wait(30)
        assert not (opened.source.folder / NAMES[1]).exists()
        held.released.set()
        reader.read_bytes(tensors["w1.0"], 0, out)
        assert out.tobytes() == shards[NAMES[1]][tensors["w1.0"].offset :][: out.size]
        assert (opened.source.folder / NAMES[1]).read_bytes() == shards[NAMES[1]]


def test_failed_shard_reaches_who_waits(repo: Any, hub: Any, patience: Patience) -> None:
    """If one shard cannot be had, waiting for any of those that are missing raises its error at once."""
    with open_source(MODEL, weights="none"):
        pass
    hub.hold(NAMES[0], 1_000_000)
    hub.spoil(NAMES[1], times=2, spoil=True)
    with open_source(MODEL, weights="stream", patience=patience) as opened:
        for name in (NAMES[1], NAMES[0]):
            with pytest.raises(AccessError, match=f"(?s){NAMES[1]}.*not what the Hub announced"):
                opened.wait(opened.source.folder / name)
        assert not (opened.source.folder / NAMES[1]).exists()
    assert _threads() == []


@pytest.mark.parametrize("how", ["error", "stop", "end"])
def test_leaving_stops_the_download(how: str, repo: Any, hub: Any) -> None:
    """An error in the block, `stop` or its end ends all downloads within a second, though a server stands still."""
    holds = [hub.hold(name, 200_000) for name in NAMES]
    with open_source(MODEL, weights="none"):
        pass
    hub.body_faults[:] = [(name, held) for name, held in zip(NAMES, holds, strict=True)]
    started = 0.0
    waiter: list[Exception] = []

    def wait(path: Path) -> None:
        try:
            opened.wait(path)
        except PipelineError as error:
            waiter.append(error)

    def leave() -> None:
        if how == "error":
            raise ZeroDivisionError
        if how == "stop":
            opened.stop()

    try:
        with open_source(MODEL, weights="stream") as opened:
            waiting = threading.Thread(target=wait, args=(opened.source.folder / NAMES[2],))
            waiting.start()
            opened.prefer([])
            assert all(held.reached.wait(30) for held in holds)
            started = time.monotonic()
            leave()
    except ZeroDivisionError:
        assert how == "error"
    assert time.monotonic() - started < 1
    waiting.join(1)
    assert [str(e).splitlines()[0] for e in waiter] == ["the download was stopped"]
    assert _threads() == []
    for held in holds:
        held.released.set()


def test_header_that_is_not_the_files(repo: Any, hub: Any, shards: dict[str, bytes], patience: Patience) -> None:
    """A plan made by a header that the whole file does not have is stopped."""
    whole = shards[NAMES[0]]
    n = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + n])
    header["w0.x"] = header.pop("w0.0")
    other = json.dumps(header).encode()
    assert len(other) == n
    commit = repo.commits[repo.refs["main"]]
    with open_source(MODEL, weights="none"):
        pass
    for partial in Path(os.environ["HF_HOME"]).rglob("*.incomplete"):
        if partial.name.startswith(repo.etag(NAMES[0], whole)):
            partial.write_bytes(whole[:8] + other)
    with (
        open_source(MODEL, weights="stream", patience=patience) as opened,
        pytest.raises(AccessError, match="header that came first"),
    ):
        opened.wait(opened.source.folder / NAMES[0])
    assert commit[NAMES[0]] == whole


def test_weights_that_are_there_need_nothing(repo: Any, hub: Any) -> None:
    """With a full cache no header is fetched and no wait takes time, whatever was asked for."""
    with open_source(MODEL):
        pass
    hub.requests.clear()
    for weights in ("none", "stream", "all"):
        with open_source(MODEL, weights=weights) as opened:  # type: ignore[arg-type]
            assert opened.remote_headers == {}
            for name in NAMES:
                opened.wait(opened.source.folder / name)
    assert hub.requests == []
    assert _threads() == []


def test_folders_are_open_at_once(demo: Path) -> None:
    """A folder has all its files, and nothing to wait for."""
    with open_source("demo", weights="stream") as opened:
        assert opened.remote_headers == {}
        opened.wait(demo / "model.safetensors")
        opened.prefer([])
        opened.stop()


def test_pickle_comes_whole_or_not(hub: Any, files: dict[str, bytes], repository: Path) -> None:
    """Pickle weights come only where there is no safetensors file, and before the model is open: they have no head."""
    del files["model.safetensors"]
    weights = repository / "tests" / "fixtures" / "checkpoints" / "bloom_bin" / "pytorch_model.bin"
    files["pytorch_model.bin"] = weights.read_bytes()
    hub.repo(MODEL, files)
    with (
        pytest.raises(UnsupportedError, match=r"(?s)pickles.*gguf-pipeline pull org/m"),
        open_source(MODEL, weights="none"),
    ):
        pass
    with open_source(MODEL, weights="stream") as opened:
        assert (opened.source.folder / "pytorch_model.bin").read_bytes() == files["pytorch_model.bin"]
        assert not (opened.source.folder / "training_args.bin").exists()
        assert len(open_checkpoint(opened.source.folder, opened.remote_headers).tensors) == 29
    with open_source(MODEL, weights="none") as opened:
        assert len(open_checkpoint(opened.source.folder, opened.remote_headers).tensors) == 29


def test_pickle_shards_come_by_their_index(hub: Any, files: dict[str, bytes]) -> None:
    """An index of pickle files brings its shards."""
    del files["model.safetensors"], files["pytorch_model.bin"]
    files["pytorch_model.bin.index.json"] = b'{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}'
    files |= {"pytorch_model-1.bin": b"1", "pytorch_model-2.bin": b"2", "pytorch_model-3.bin": b"3"}
    hub.repo(MODEL, files)
    with open_source(MODEL) as opened:
        assert {p.name for p in opened.source.folder.glob("*.bin")} == {"pytorch_model-1.bin", "pytorch_model-2.bin"}
