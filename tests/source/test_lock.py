from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import data
from pipeline.errors import InputError, UsageError
from pipeline.source import _lock, resolve
from pipeline.source._manifest import Manifest, RemoteFile

COMMIT = "0123456789" * 4
MANIFEST = Manifest("org/m", "main", COMMIT, (RemoteFile("config.json", 2, "0a"), RemoteFile("x", None, None)))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_written_is_read() -> None:
    """An entry comes back as it was, with its time, beside others, and only for its repository and branch."""
    assert _lock.read("m", "org/m", "main") is None
    _lock.write("m", MANIFEST, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    _lock.write("other", MANIFEST)
    assert _lock.read("m", "org/m", "main") == MANIFEST
    assert _lock.read("m", "org/m", "dev") is None
    assert _lock.read("m", "org/else", "main") is None
    text = json.loads((data.data_home() / "models.lock.json").read_text())
    assert text["models"]["m"] == {
        "repository": "org/m",
        "revision": "main",
        "commit": COMMIT,
        "time": "2026-01-02T03:04:05+00:00",
        "files": {"config.json": {"size": 2, "etag": "0a"}, "x": {"size": None, "etag": None}},
    }


def test_writers_do_not_lose_each_others_entries() -> None:
    """Twenty writers at once leave twenty entries, and nothing beside the file and its lock."""
    threads = [threading.Thread(target=_lock.write, args=(f"m{i}", MANIFEST)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(_lock.read(f"m{i}", "org/m", "main") == MANIFEST for i in range(20))
    assert {p.name for p in data.data_home().iterdir()} == {"models.lock.json", ".models.lock.json.lock"}


DAMAGED = {
    "no json": "{",
    "no object": "[]",
    "other version": '{"version": 2, "models": {}}',
    "no models": '{"version": 1}',
    "deep": "[" * 100_000,
    "row": '{"version": 1, "models": {"m": []}}',
    "commit": '{"version": 1, "models": {"m": ROW}}'.replace("ROW", "COMMIT"),
}
ROW = {"repository": "org/m", "revision": "main", "commit": COMMIT, "time": "2026-01-02T03:04:05+00:00", "files": {}}
BAD_ROWS: list[dict[str, Any]] = [
    {"commit": "main"},
    {"commit": 7},
    {"time": "yesterday"},
    {"time": None},
    {"files": []},
    {"files": {"a": {"size": 1}}},
    {"files": {"a": {"size": -1, "etag": None}}},
    {"files": {"a": {"size": True, "etag": None}}},
    {"files": {"a": {"size": 1, "etag": 1}}},
    {"files": {"../a": {"size": 1, "etag": "a"}}},
    {"files": {"/a": {"size": 1, "etag": "a"}}},
]


@pytest.mark.parametrize("case", [*DAMAGED, *range(len(BAD_ROWS))])
def test_damage_is_said(case: str | int) -> None:
    """A lock file that is not one says where it is and that it can be taken away; a bad row does too."""
    path = data.data_home() / "models.lock.json"
    path.parent.mkdir(parents=True)
    if isinstance(case, str):
        path.write_text(DAMAGED[case])
    else:
        path.write_text(json.dumps({"version": 1, "models": {"m": ROW | BAD_ROWS[case]}}))
    with pytest.raises(UsageError, match=r"(?s)models\.lock\.json.*cannot be read.*take the file away"):
        _lock.read("m", "org/m", "main")


def test_a_model_stays_what_it_was(hub: Any, files: dict[str, bytes]) -> None:
    """Without a revision the recorded commit counts, until an update asks what the branch is now."""
    repo = hub.repo("org/m", files)
    old = repo.refs["main"]
    assert resolve("org/m").commit == old
    new = repo.commit({**files, "README.md": b"new"})
    assert resolve("org/m").commit == old
    assert resolve("org/m", update=True).commit == new
    assert resolve("org/m").commit == new


def test_a_revision_wins_and_stands_apart(hub: Any, files: dict[str, bytes]) -> None:
    """A revision that is named is asked for each time, and does not change what the model is without one."""
    repo = hub.repo("org/m", files)
    main = resolve("org/m").commit
    first = repo.commit({**files, "README.md": b"1"}, "dev")
    assert resolve("org/m@dev").commit == first
    second = repo.commit({**files, "README.md": b"2"}, "dev")
    assert resolve("org/m", revision="dev").commit == second
    assert resolve(f"org/m@{first}").commit == first
    assert resolve("org/m").commit == main
    recorded = json.loads(_lock.path().read_text())["models"]
    assert {key: row["commit"] for key, row in recorded.items()} == {
        "org/m": main, "org/m@dev": second, f"org/m@{first}": first,
    }  # fmt: skip


def test_an_alias_has_its_own_entry(here: Path, hub: Any, files: dict[str, bytes]) -> None:
    """An alias is recorded by its name; if models.toml gives it another branch, the old entry does not count."""
    repo = hub.repo("org/m", files)
    dev = repo.commit({**files, "README.md": b"dev"}, "dev")
    (here / "models.toml").write_text('[mine]\nrepo = "org/m"\n')
    assert resolve("mine").commit == repo.refs["main"]
    (here / "models.toml").write_text('[mine]\nrepo = "org/m"\nbranch = "dev"\n')
    assert resolve("mine").commit == dev
    assert _lock.read("mine", "org/m", "dev") is not None


def test_offline_a_named_branch_is_what_was_recorded(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network a revision that was asked for before is known."""
    hub.repo("org/m", files).commit({**files, "README.md": b"dev"}, "dev")
    online = resolve("org/m@dev")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/m@dev") == online


def test_the_recorded_commit_comes_back(hub: Any, files: dict[str, bytes]) -> None:
    """If the cache was emptied, the recorded commit is fetched, not what the branch is now."""
    repo = hub.repo("org/m", files)
    source = resolve("org/m")
    repo.commit({**files, "README.md": b"new"})
    for path in source.folder.iterdir():
        path.resolve().unlink()
        path.unlink()
    hub.requests.clear()
    assert resolve("org/m") == source
    assert (source.folder / "README.md").read_bytes() == files["README.md"]
    assert not any("/api/" in path for _, path in hub.requests)


def test_a_commit_that_is_gone_is_said(hub: Any, files: dict[str, bytes]) -> None:
    """If the Hub no longer has the recorded commit, the message names the command that asks anew."""
    repo = hub.repo("org/m", files)
    source = resolve("org/m")
    old = repo.commits.pop(str(source.commit))
    repo.commit({**old, "README.md": b"new"})
    (source.folder / "config.json").resolve().unlink()
    with pytest.raises(InputError, match=r"(?s)gone from the Hub.*gguf-pipeline pull org/m"):
        resolve("org/m")
    assert resolve("org/m", update=True).commit == repo.refs["main"]


def test_a_folder_that_cannot_be_written_is_no_end(
    hub: Any, files: dict[str, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is there even if its commit cannot be recorded; a note says so."""
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(here / "file"))
    hub.repo("org/m", files)
    lines: list[str] = []
    assert resolve("org/m", log=lines.append).commit
    assert len(lines) == 1
    assert "org/m is not recorded" in lines[0]


def test_half_a_download_records_nothing(hub: Any, files: dict[str, bytes]) -> None:
    """A pull that fails leaves what was recorded before: that copy is whole."""
    repo = hub.repo("org/m", files)
    old = resolve("org/m")
    repo.commit({**files, "model.safetensors": files["model.safetensors"] + b"!"})
    hub.fail("/model.safetensors", 403)
    with pytest.raises(Exception, match="refuses access"):
        resolve("org/m", update=True)
    assert resolve("org/m") == old
