"""What the tests of faults share: a home to do harm to, a Hub to publish from, small disks, and a count of it all.

At the end a table says how many faults of each class were tried, and how many were survived.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.serve import BackgroundServer
from pipeline.store import LOCAL_HOST, Name, Store

TAGS = ("Q4_0", "Q8_0", "latest")
WEIGHTS = "model.safetensors"
QUANTS = ("--quant", "Q4_0,Q8_0", "--proof", "none")

PUBLISH_NEW = ("publish", "me/tiny@new", *QUANTS)

Tally = Callable[[str], AbstractContextManager[None]]
_counting = threading.Lock()
_COUNTS = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[_COUNTS] = {}


@pytest.fixture
def tally(pytestconfig: pytest.Config) -> Tally:
    """Count a fault of a class as tried, and as survived if nothing in the block fails; use as a context manager."""

    @contextmanager
    def count(kind: str) -> Iterator[None]:
        with _counting:
            pytestconfig.stash[_COUNTS].setdefault(kind, Counter())["tried"] += 1
        yield
        with _counting:
            pytestconfig.stash[_COUNTS][kind]["survived"] += 1

    return count


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of docs/faults.md."""
    counts = config.stash[_COUNTS]
    if counts:
        rows = [f"| {kind} | {found['tried']} | {found['survived']} |" for kind, found in sorted(counts.items())]
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(["| fault | tried | survived |", "|---|---|---|", *rows]))


_COUNTING = (
    "-c",
    "import atexit, json, pathlib, sys\n"
    "from pipeline import cli, crash\n"
    "path = pathlib.Path(sys.argv.pop(1))\n"
    "atexit.register(lambda: path.write_text(json.dumps(crash.passes)))\n"
    "cli.main()",
)


@dataclass(frozen=True)
class Home:
    """A home folder with a store, reports and a Hub cache; commands run in it as a user runs them.

    *prefix* is what the command line begins with, *variables* win over the usual ones; the store is looked at in
    *root_at*, if that is not where the commands see it.
    """

    folder: Path
    hub: Any
    prefix: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    root_at: Path | None = None

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.root_at or self.folder / "registry"

    @property
    def store(self) -> Store:
        """The store."""
        return Store(self.root)

    def start(
        self, *arguments: str | Path, program: tuple[str, ...] = ("-m", "pipeline.cli"), **environment: str
    ) -> subprocess.Popen[str]:
        """Start `gguf-pipeline ARGUMENTS...`."""
        own = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "GGUF_PIPELINE_STORE": str(self.root),
        }
        return subprocess.Popen(
            [*self.prefix, sys.executable, *program, *map(str, arguments)],
            env=own | self.variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, expect: int = 0, **environment: str) -> str:
        """Run `gguf-pipeline ARGUMENTS...`, which must end with the exit code *expect*; return what it says."""
        process = self.start(*arguments, **environment)
        said = "".join(process.communicate(timeout=120))
        assert process.returncode == expect, f"{arguments}: {process.returncode}\n{said}"
        assert "Traceback" not in said
        return said

    def publish_new(self, **environment: str) -> str:
        """Publish me/tiny@new."""
        return self.run(*PUBLISH_NEW, **environment)

    def passes(self, *arguments: str | Path) -> Counter[str]:
        """Run a command to its end and return how often it passed each crash point."""
        path = self.folder.parent / "passes.json"
        process = self.start(path, *arguments, program=_COUNTING, GGUF_PIPELINE_CRASH="never")
        said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return Counter(json.loads(path.read_text(encoding="utf-8")))

    def digests(self, model: str = "tiny") -> dict[str, str]:
        """Return the digest of the manifest of each tag of *model*."""
        return {entry.name.tag: entry.digest for entry in self.store.list() if entry.name.model == model}

    def files(self) -> list[str]:
        """List all files of the home."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir())

    def on_disk(self) -> dict[str, int]:
        """Return how many bytes of each content of the Hub are in the cache, whole or begun, by its ETag."""
        blobs = (self.folder / "hf").glob("hub/models--*/blobs/*")
        return {path.name.removesuffix(".incomplete"): path.stat().st_size for path in blobs}

    def fetched(self, mark: str) -> Counter[str]:
        """Count the bytes of each file that requests marked HF_HUB_USER_AGENT_ORIGIN=*mark* asked for."""
        asked = Counter[str]()
        for request in self.hub.asked:
            if request.is_download and f"origin/{mark}" in request.headers["User-Agent"]:
                name = request.path.rpartition("/")[2]
                size = len(self.hub.repos["me/tiny"].commits[self.hub.repos["me/tiny"].refs["new"]][name])
                start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "bytes=0-")).groups()  # type: ignore[union-attr]
                asked[name] += min(size, int(end) + 1 if end else size) - int(start)
        return asked

    def check_whole(self, allowed: dict[str, set[str | None]] | None = None) -> None:
        """Require that no half model is visible: in the list, in the store's files, or through the registry.

        *allowed* are the digests that the manifest of each tag of tiny may have; None means that it may be missing.
        """
        store = self.store
        assert store.problems() == ()
        for entry in store.list():
            assert [one for one in store.verify(entry.name) if not one.ok] == []
        for path in store.blobs_dir.glob("sha256-*"):
            if re.fullmatch("sha256-[0-9a-f]{64}", path.name):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name[7:]
        if allowed:
            digests = self.digests()
            assert all(digests.get(tag) in digests_of_tag for tag, digests_of_tag in allowed.items()), digests
        self._check_served()

    def _check_served(self) -> None:
        import requests

        shown = {entry.name: entry.digest for entry in self.store.list()}
        with BackgroundServer(self.store) as server, requests.Session() as session:
            session.trust_env = False
            for tag in TAGS:
                answer = session.get(f"http://{server.address}/v2/library/tiny/manifests/{tag}", timeout=10)
                digest = shown.get(Name(LOCAL_HOST, "library", "tiny", tag))
                assert answer.status_code == (200 if digest else 404)
                assert not digest or f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == digest


def checkpoint(folder: Path, flip: int, temperature: float) -> dict[str, bytes]:
    """Give the files of a checkpoint like *folder*; *flip* changes each weight's sign, *temperature* the parameters."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
    files = {name: (folder / name).read_bytes() for name in names}
    data = bytearray((folder / WEIGHTS).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 1 :: 2] = bytes(byte ^ flip for byte in data[start + 1 :: 2])  # the upper byte of a BF16
    files[WEIGHTS] = bytes(data)
    files["generation_config.json"] = json.dumps({"temperature": temperature}).encode()
    return files


@pytest.fixture
def tiny(hub: Any, repository: Path) -> Any:
    """The repository me/tiny with two branches, old and new, that differ in the weights and in the parameters."""
    folder = repository / "tests" / "fixtures" / "arch" / "llama3"
    repo = hub.repo("me/tiny", checkpoint(folder, 0, 0.6), lfs=(".safetensors",))
    repo.commit(checkpoint(folder, 0, 0.6), "old")
    repo.commit(checkpoint(folder, 0x80, 0.7), "new")
    return repo


@dataclass(frozen=True)
class Before:
    """What there is before the harm is done, and what there shall be: digests of manifests by tag, files of the home.

    *passes* counts how often `publish` passes each crash point on its way from the one to the other.
    """

    folder: Path
    old: dict[str, str]
    new: dict[str, str]
    files: list[str]
    passes: Counter[str]


@pytest.fixture(scope="session")
def _made() -> dict[str, Before]:
    return {}


@pytest.fixture
def before(hub: Any, tiny: Any, _made: dict[str, Before], tmp_path_factory: pytest.TempPathFactory) -> Before:
    """A home in which me/tiny@old is published, made once."""
    if not _made:
        folder = tmp_path_factory.mktemp("before")
        home = Home(folder / "old", hub)
        home.folder.mkdir()
        home.run("publish", "me/tiny@old", *QUANTS)
        after = Home(folder / "new", hub)
        shutil.copytree(home.folder, after.folder, symlinks=True)
        passes = after.passes(*PUBLISH_NEW)
        after.store.gc(older_than=0.0)
        _made["tiny"] = Before(home.folder, home.digests(), after.digests(), after.files(), passes)
    return _made["tiny"]


@pytest.fixture
def again(before: Before, hub: Any, tmp_path: Path) -> Callable[..., Home]:
    """Make a copy of that home, or of another folder, to do harm to, as often as it is called."""
    numbers = itertools.count()

    def copy(folder: Path = before.folder) -> Home:
        made = Home(tmp_path / f"{next(numbers)}" / "home", hub)
        shutil.copytree(folder, made.folder, symlinks=True)
        return made

    return copy


@pytest.fixture
def home(again: Callable[[], Home]) -> Home:
    """One such copy."""
    return again()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait until a condition holds: `until(lambda: ...)`."""

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.002)

    return wait


@dataclass(frozen=True)
class Disk:
    """A file system in memory of its own, at *folder*, that only the commands of `prefix` see there."""

    folder: Path
    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command see it."""
        return ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(self.pid), "--")

    @property
    def seen(self) -> Path:
        """Where this process sees its content."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    def change(self, options: str) -> None:
        """Mount it with other options: ro, rw, size=N, nr_inodes=N."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{options}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Make a disk in memory with mount options: `disk("size=1m")`; no rights are needed, but Linux with namespaces."""
    holders: list[subprocess.Popen[str]] = []
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("unshare and nsenter are needed (util-linux)")

    def make(options: str, name: str = "disk") -> Disk:
        folder = tmp_path / name
        folder.mkdir()
        script = 'mount -t tmpfs -o "$1" none "$2" && echo ready && exec cat'
        holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", options, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if said != "ready\n":
            pytest.skip(f"no mount namespaces here: {said}")
        return Disk(folder, holder.pid)

    yield make
    for holder in holders:
        holder.kill()
        holder.communicate()
