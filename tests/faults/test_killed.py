"""A process killed at any point leaves the old model whole, or the new one; the next run ends the work."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import crash

PACKAGE = Path(crash.__file__).parent
PUBLISH = ("publish", "me/tiny@new", "--quant", "Q4_0,Q8_0", "--proof", "none")
HOUR = 3600
_marks = itertools.count()
Allowed = dict[str, set[str | None]]


def test_the_table_is_what_the_code_passes() -> None:
    """Every point of the table is passed somewhere, and no other is."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "crash.py")
    assert set(re.findall(r'(?:crash\.point\(|_unlinked\(\w+, )"([\w ]+)"', code)) == set(crash.POINTS)


def test_without_the_variable_a_point_does_nothing() -> None:
    """In a process that is not to be killed nothing is counted, not even a point that the table lacks."""
    crash.point("no such point")
    assert not crash.passes


def _some(n_passes: int) -> list[int]:
    """Choose the first pass of a point, the last and one between."""
    assert n_passes, "this command does not pass the point: is its row in the table right?"
    return sorted({1, (n_passes + 1) // 2, n_passes})


def _each(harm: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Do the same harm at each pass, two at a time: it is other processes that work."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(harm, numbers))


def _kill(home: Any, point: str, *arguments: str | Path) -> None:
    process = home.start(*arguments, GGUF_PIPELINE_CRASH=point)
    said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said


def _either(before: Any) -> Allowed:
    return {tag: {before.old[tag], before.new[tag]} for tag in before.old}


def _publish_again(home: Any, before: Any) -> None:
    """The run after the kill: it ends the work, fetches only what is not on the disk, and leaves nothing over."""
    had, mark = home.on_disk(), f"after-{next(_marks)}"
    home.run(*PUBLISH, HF_HUB_USER_AGENT_ORIGIN=mark)
    fetched, sizes = home.fetched(mark), home.on_disk()
    missing = sum(size - had.get(etag, 0) for etag, size in sizes.items())
    assert sum(fetched.values()) == missing
    _is_done(home, before)


def _is_done(home: Any, before: Any) -> None:
    """All is as after a publication that nothing disturbed."""
    home.check_whole({tag: {digest} for tag, digest in before.new.items()})
    left = [name for name in home.files() if "pkg-" in name or name.endswith((".part", ".incomplete", ".new"))]
    assert left == []
    home.store.gc(older_than=0.0)
    assert home.files() == before.files


@pytest.mark.parametrize("point", [name for name, command in crash.POINTS.items() if command == "publish"])
def test_publish(point: str, before: Any, again: Callable[..., Any], tally: Any) -> None:
    """Killed at a named point: each tag is the old model or the new one, and publishing again makes all of it new."""

    def harm(number: int) -> None:
        with tally("killed at a named point of publish"):
            home = again()
            _kill(home, f"{point}:{number}", *PUBLISH)
            home.check_whole(_either(before))
            _publish_again(home, before)

    # Into how many pieces a file comes apart is the network's affair; one it has in any case.
    at_least = before.passes["download synced" if point == "piece downloaded" else point]
    _each(harm, _some(at_least))


def _at(command: str) -> list[str]:
    return [name for name, passed_by in crash.POINTS.items() if passed_by == command]


@pytest.fixture
def gguf(home: Any, tmp_path: Path) -> Path:
    """The weights of me/tiny@new in a GGUF called tiny.gguf."""
    path = tmp_path / "tiny.gguf"
    home.run("convert", "me/tiny@new", "-o", path)
    return path


@pytest.mark.parametrize("point", _at("copy"))
def test_publish_a_gguf(point: str, before: Any, again: Callable[..., Any], gguf: Path, tally: Any) -> None:
    """Killed while a GGUF is copied as it is: nothing of it is visible; then it is published, byte for byte."""

    def harm(number: int) -> None:
        with tally("killed at a named point of publish"):
            home = again()
            _kill(home, f"{point}:{number}", "publish", gguf, "--proof", "none")
            home.check_whole({tag: {digest} for tag, digest in before.old.items()})
            home.run("publish", gguf, "--proof", "none")
            home.check_whole()
            model = home.store.read_manifest(next(e.name for e in home.store.list() if e.name.tag == "BF16"))
            assert home.store.blob_path(model.layers[0].blob.digest).read_bytes() == gguf.read_bytes()
            assert [name for name in home.files() if "pkg-" in name or name.endswith(".part")] == []

    _each(harm, _some(again().passes("publish", gguf, "--proof", "none")[point]))


@pytest.mark.parametrize("point", _at("rm"))
def test_rm(point: str, before: Any, again: Callable[..., Any], tally: Any) -> None:
    """Killed while a model is removed: the others are whole, what is left of it is not visible, and gc takes it."""
    other = again()
    passes = other.passes("rm", "tiny:Q8_0")
    other.store.gc(older_than=0.0)

    def harm(number: int) -> None:
        with tally("killed at a named point of rm or gc"):
            home = again()
            _kill(home, f"{point}:{number}", "rm", "tiny:Q8_0")
            home.check_whole({"Q4_0": {before.old["Q4_0"]}, "latest": {before.old["latest"]}, "Q8_0": {None}})
            home.store.gc(older_than=0.0)
            assert home.files() == other.files()

    _each(harm, _some(passes[point]))


@pytest.mark.parametrize("point", _at("gc"))
def test_gc(point: str, before: Any, again: Callable[..., Any], tally: Any) -> None:
    """Killed while garbage is removed: every model is whole, and the next gc removes the rest."""
    both = again()
    both.run(*PUBLISH)
    for path in both.store.blobs_dir.iterdir():
        os.utime(path, (0, time.time() - 2 * HOUR))

    def harm(number: int) -> None:
        with tally("killed at a named point of rm or gc"):
            home = again(both.folder)
            _kill(home, f"{point}:{number}", "gc")
            home.run("gc")
            _is_done(home, before)

    _each(harm, _some(again(both.folder).passes("gc")[point]))


FRACTIONS = [random.Random(seed).random() for seed in range(8)]  # noqa: S311  the same ones each time


def test_any_moment(before: Any, again: Callable[..., Any], tally: Any) -> None:
    """Killed at any part of its way, measured in points passed, whichever they are."""

    def harm(number: int) -> None:
        with tally("killed at a random moment"):
            home = again()
            _kill(home, f"*:{number}", *PUBLISH)
            home.check_whole(_either(before))
            _publish_again(home, before)

    # How a download is cut into pieces differs a little from run to run.
    _each(harm, [1 + int(fraction * before.passes["*"] * 0.95) for fraction in FRACTIONS])


@pytest.mark.parametrize("fraction", FRACTIONS[:4], ids=lambda fraction: f"{fraction:.3f}")
def test_any_byte_of_the_download(fraction: float, before: Any, home: Any, until: Any, tally: Any) -> None:
    """Killed from outside when the Hub has sent a part of the weights: the next run asks for the rest alone."""
    weights = "model.safetensors"
    with tally("killed at a random moment"):
        home.run("plan", "me/tiny@new")  # the header is here now: what is held is the rest
        (began,) = [size for etag, size in home.on_disk().items() if size > 100_000 and etag in _partials(home)]
        at = int(fraction * (199_328 - began))
        fault = home.hub.hold(weights, at)
        process = home.start(*PUBLISH)
        assert fault.reached.wait(60)
        until(lambda: [1 for size in _partials(home).values() if size == began + at])
        process.kill()
        process.communicate(timeout=60)
        fault.released.set()
        assert process.returncode == -signal.SIGKILL
        home.check_whole({tag: {digest} for tag, digest in before.old.items()})
        _publish_again(home, before)


def _partials(home: Any) -> dict[str, int]:
    paths = (home.folder / "hf").glob("hub/models--*/blobs/*.incomplete")
    return {path.name.removesuffix(".incomplete"): path.stat().st_size for path in paths}


@pytest.mark.parametrize("point", ["header written", "chunk written", "file written", "file synced"])
def test_convert(point: str, home: Any, tmp_path: Path, tally: Any) -> None:
    """Killed while a GGUF is written: the old file of that name stays; the next run replaces it, and sweeps."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.gguf").write_bytes(b"old")
    with tally("killed while converting"):
        _kill(home, point, "convert", "me/tiny@new", "-o", out / "x.gguf")
        assert (out / "x.gguf").read_bytes() == b"old"
        assert len(list(out.iterdir())) == 2
        home.run("convert", "me/tiny@new", "-o", out / "x.gguf")
        assert [path.name for path in out.iterdir()] == ["x.gguf"]
        assert (out / "x.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("point", _at("convert"))
def test_convert_into_parts(point: str, home: Any, demo: Path, tmp_path: Path, tally: Any) -> None:
    """Killed while parts get their names: if the first is there, all are, old or new; the next run makes all new."""

    def split(out: Path, dtype: str) -> tuple[str | Path, ...]:
        out.mkdir(exist_ok=True)
        return ("convert", demo, "--dtype", dtype, "--split-size", "2M", "-o", out / "x.gguf")

    def files(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".gguf"}

    passes = home.passes(*split(tmp_path / "new", "bf16"))
    home.run(*split(tmp_path / "old", "f16"))
    old, new = files(tmp_path / "old"), files(tmp_path / "new")
    assert len(new) > 2

    def harm(number: int) -> None:
        with tally("killed while converting"):
            out = tmp_path / f"out{number}"
            shutil.copytree(tmp_path / "old", out)
            _kill(home, f"{point}:{number}", *split(out, "bf16"))
            assert min(new) not in files(out) or files(out) in (old, new)
            home.run(*split(out, "bf16"))
            assert files(out) == new
            assert len(list(out.iterdir())) == len(new)

    _each(harm, _some(passes[point]))
