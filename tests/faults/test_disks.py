"""A full disk or a read-only one, both real: the right exit code, the next step, nothing half done; then it works."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mounts

PUBLISH = ("publish", "me/tiny@new", "--quant", "Q4_0,Q8_0", "--proof", "none")
PAGE = 4096
FULL, REFUSED, DONE = 5, 4, 0
VARIABLES = {"registry": "GGUF_PIPELINE_STORE", "data": "XDG_DATA_HOME", "hf": "HF_HOME"}


class OnDisk:
    """A home of which *part* ("registry", "data", "hf") lies on a small disk of its own."""

    def __init__(self, home: Any, make: Callable[[str], Any], part: str) -> None:
        self.disk = make("size=64m")
        shutil.copytree(home.folder / part, self.disk.seen, symlinks=True, dirs_exist_ok=True)
        self.home = replace(home, prefix=self.disk.prefix, variables={VARIABLES[part]: str(self.disk.folder)})
        # The same, as this process sees it: to look at.
        self.seen = replace(home, root_at=self.disk.seen) if part == "registry" else home

    def leave(self, unit: str, more: int) -> None:
        """Leave room for *more* files (*unit* "files") or pages of 4 KiB ("pages")."""
        used = os.statvfs(self.disk.seen)
        files, pages = used.f_files - used.f_ffree + more, used.f_blocks - used.f_bfree + more
        self.disk.change(f"nr_inodes={files}" if unit == "files" else f"size={pages * PAGE}")

    def give_room(self) -> None:
        """Leave room for everything."""
        self.disk.change("size=64m,nr_inodes=10000,rw")

    def files(self) -> list[Path]:
        """List the files on it."""
        return sorted(path for path in self.disk.seen.rglob("*") if not path.is_dir())

    def run(self, *arguments: str | Path, **environment: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it says."""
        process = self.home.start(*arguments, **environment)
        said = "".join(process.communicate(timeout=120))
        assert "Traceback" not in said
        return process.returncode, said


@pytest.fixture
def on_disk(home: Any, disk: Callable[[str], Any]) -> Callable[[str], OnDisk]:
    """Put a part of the home on a small disk: `on_disk("registry")`."""
    return lambda part: OnDisk(home, disk, part)


def _until_done(on: OnDisk, unit: str, amounts: Iterator[int]) -> Iterator[tuple[int, str]]:
    """Publish with more and more room, until it works; give what each run before said."""
    for more in amounts:
        on.leave(unit, more)
        code, said = on.run(*PUBLISH)
        if code == DONE:
            return
        yield code, said


def _amounts(unit: str, rough: int, fine: int) -> Iterator[int]:
    """Room to leave: of files any number from none on; of pages a few, then *rough* and all from there in *fine*."""
    return iter(range(100)) if unit == "files" else iter((*range(0, rough, rough // 3), *range(rough, 10_000, fine)))


@pytest.mark.parametrize(("unit", "rough", "fine"), [("files", 0, 0), ("pages", 49, 1)])
def test_the_store_is_full(unit: str, rough: int, fine: int, on_disk: Any, before: Any, tally: Any) -> None:
    """Full at whichever file or byte of a publication: nothing new is visible, nothing half written is left."""
    on = on_disk("registry")
    tries = 0
    for code, said in _until_done(on, unit, _amounts(unit, rough, fine)):
        with tally("full disk: store"):
            assert code == FULL, said
            assert str(on.disk.folder) in said
            assert re.search(r"hint: .*(free some space|GGUF_PIPELINE_STORE)", said)
            on.seen.check_whole({tag: {digest} for tag, digest in before.old.items()})
            assert [path for path in on.files() if "pkg-" in path.name or path.suffix == ".part"] == []
        tries += 1
    assert tries > 3
    on.seen.check_whole({tag: {digest} for tag, digest in before.new.items()})


@pytest.mark.parametrize("unit", ["files", "pages"])
def test_the_cache_of_the_hub_is_full(unit: str, on_disk: Any, before: Any, home: Any, tally: Any) -> None:
    """Full at whichever file or byte of a download: nothing is published, and what has arrived is used later."""
    on = on_disk("hf")
    tries = 0
    for code, said in _until_done(on, unit, _amounts(unit, 30, 10)):
        with tally("full disk: cache of the Hub"):
            assert code == FULL, said
            assert re.search(r"hint: .*HF_HOME", said)
            home.check_whole({tag: {digest} for tag, digest in before.old.items()})
            assert [path for path in on.files() if path.suffix in {".part", ".new"}] == []
        tries += 1
    assert tries > 3
    home.check_whole({tag: {digest} for tag, digest in before.new.items()})


def test_no_room_for_the_report(on_disk: Any, before: Any, home: Any, tally: Any) -> None:
    """Without room for a report nothing is begun; where it is lost after all, that is said, and the model is whole."""
    on = on_disk("data")
    with tally("full disk: reports"):
        on.leave("pages", 10)
        asked = len(home.hub.asked)
        code, said = on.run(*PUBLISH)
        assert (code, len(home.hub.asked)) == (FULL, asked), said
        assert re.search(r"no room for the report(.|\n)*hint: .*XDG_DATA_HOME", said)
    with tally("full disk: reports"):
        on.give_room()
        on.leave("files", 0)
        code, said = on.run(*PUBLISH)
        assert code == FULL, said
        assert "the model is published, but its report could not be written" in said
        home.check_whole({tag: {digest} for tag, digest in before.new.items()})
    with tally("full disk: reports"):
        on.give_room()
        assert on.run(*PUBLISH)[0] == DONE
        shown = on.run("inspect", "--report", "tiny:Q4_0")
        assert shown[0] == DONE, shown


def test_no_room_for_the_output(home: Any, disk: Callable[[str], Any], tmp_path: Path, tally: Any) -> None:
    """`convert` and `quantize` keep the old file where the new one does not fit, and leave nothing beside it."""
    source = tmp_path / "source.gguf"
    home.run("convert", "me/tiny@new", "-o", source)
    small = disk("size=64k")
    on = replace(home, prefix=small.prefix)
    (small.seen / "x.gguf").write_bytes(b"old")
    for command in (("convert", "me/tiny@new"), ("quantize", source, "--quant", "Q8_0")):
        with tally("full disk: output"):
            said = on.run(*command, "-o", small.folder / "x.gguf", expect=FULL)
            assert "hint: " in said
            assert [path.name for path in small.seen.iterdir()] == ["x.gguf"]
            assert (small.seen / "x.gguf").read_bytes() == b"old"
            small.change("size=4m")
            on.run(*command, "-o", small.folder / "y.gguf")
            (small.seen / "y.gguf").unlink()
            small.change("size=64k")


def test_another_program_takes_the_room(home: Any, on_disk: Any, before: Any, until: Any, tally: Any) -> None:
    """The room for the files is reserved before the download ends, so that nobody can take it meanwhile."""
    on = on_disk("registry")
    home.run("plan", "me/tiny@new")  # the header is here now: what is held is the rest
    fault = home.hub.hold("model.safetensors", 40_000)
    with tally("full disk: store"):
        process = on.home.start(*PUBLISH)
        assert fault.reached.wait(60)
        until(lambda: len([1 for path in on.files() if path.suffix == ".part" and path.stat().st_size]) == 2)
        on.leave("pages", 12)  # for the texts
        fault.released.set()
        said = "".join(process.communicate(timeout=60))
        assert process.returncode == DONE, said
    on.seen.check_whole({tag: {digest} for tag, digest in before.new.items()})


READ_ONLY = {
    "registry": r"the store can not be written(.|\n)*GGUF_PIPELINE_STORE",
    "data": r"the report could not be written(.|\n)*XDG_DATA_HOME",
    "hf": r"the cache folder cannot be written(.|\n)*HF_HOME",
}


@pytest.mark.parametrize("part", READ_ONLY)
def test_a_read_only_folder(part: str, on_disk: Any, before: Any, home: Any, tally: Any) -> None:
    """A read-only folder is refused by its name, with the next step, before a byte of the weights is asked for."""
    on = on_disk(part)
    on.disk.change("ro")
    with tally("read-only folder"):
        code, said = on.run(*PUBLISH, HF_HUB_USER_AGENT_ORIGIN="read-only")
        assert code == REFUSED, said
        assert re.search(READ_ONLY[part], said)
        assert str(on.disk.folder) in said
        assert home.fetched("read-only")["model.safetensors"] == 0
        on.seen.check_whole({tag: {digest} for tag, digest in before.old.items()})
        on.disk.change("rw")
        assert on.run(*PUBLISH)[0] == DONE
        on.seen.check_whole({tag: {digest} for tag, digest in before.new.items()})


def test_a_read_only_cache_serves(on_disk: Any, tally: Any) -> None:
    """What is whole in the Hub's cache is published from there, though nothing can be written to it."""
    on = on_disk("hf")
    on.disk.change("ro")
    with tally("read-only folder"):
        assert on.run("publish", "me/tiny@old", "--quant", "Q8_0", "--proof", "none")[0] == DONE


def test_a_read_only_output(home: Any, disk: Callable[[str], Any], tmp_path: Path, tally: Any) -> None:
    """`convert` and `quantize` refuse a read-only folder before the weights are asked for."""
    source = tmp_path / "source.gguf"
    home.run("convert", "me/tiny@old", "-o", source)
    small = disk("size=4m")
    on = replace(home, prefix=small.prefix)
    small.change("ro")
    for command in (("convert", "me/tiny@new"), ("quantize", source, "--quant", "Q8_0")):
        with tally("read-only folder"):
            said = on.run(*command, "-o", small.folder / "x.gguf", expect=REFUSED, HF_HUB_USER_AGENT_ORIGIN="output")
            assert re.search(rf"{small.folder}: the folder of the output cannot be written(.|\n)*hint: .*-o", said)
            assert home.fetched("output")["model.safetensors"] <= 1 << 17  # its header
