from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, UsageError
from pipeline.source import aliases, resolve
from pipeline.types import Source


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_demo_needs_nothing(demo: Path) -> None:
    """The alias of the built-in demo is its folder, without network."""
    assert resolve("demo") == Source("demo", demo, alias="demo", family="chatml")


def test_paths(here: Path) -> None:
    """A folder is found by every way to write it and is called like itself."""
    folder = _checkpoint(here / "a" / "My-Model")
    for model in ("./a/My-Model", "a/My-Model", str(folder), "a/../a/My-Model", "./a/My-Model/"):
        assert resolve(model) == Source("My-Model", folder)


def test_current_folder_and_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single dot and a tilde name folders too."""
    folder = _checkpoint(here / "m")
    monkeypatch.setenv("HOME", str(here))
    assert resolve("~/m").folder == folder
    monkeypatch.chdir(folder)
    assert resolve(".") == Source("m", folder)


def test_folder_with_a_checkpoint_wins_over_alias(here: Path, demo: Path) -> None:
    """A bare name that is both is the folder if it holds config.json, with a note, and the alias if not."""
    (here / "demo").mkdir()
    assert resolve("demo").folder == demo
    (here / "demo" / "config.json").write_text("{}")
    lines: list[str] = []
    assert resolve("demo", log=lines.append) == Source("demo", here / "demo")
    assert lines == ["demo is the folder here, not the alias of that name"]


def test_repository(hub: Any, files: dict[str, bytes]) -> None:
    """org/name is fetched, at the revision behind the @ or given apart."""
    repo = hub.repo("Org/My.Model", files)
    main = repo.refs["main"]
    dev = repo.commit({**files, "README.md": b"dev"}, "refs/pr/1")
    assert resolve("Org/My.Model").commit == main
    found = resolve("Org/My.Model@refs/pr/1")
    assert (found.name, found.revision, found.commit, found.alias) == ("My.Model", "refs/pr/1", dev, None)
    assert resolve("Org/My.Model", revision="refs/pr/1") == found
    assert resolve("Org/My.Model@refs/pr/1", revision="refs/pr/1") == found


def test_alias_of_a_repository(here: Path, hub: Any, files: dict[str, bytes]) -> None:
    """An alias gives its name to the model, and its branch unless another revision is asked for."""
    repo = hub.repo("org/m", files)
    main = repo.refs["main"]
    dev = repo.commit({**files, "README.md": b"dev"}, "dev")
    (here / "models.toml").write_text('[mine]\nrepo = "org/m"\nbranch = "dev"\n')
    found = resolve("mine")
    assert (found.name, found.alias, found.repository, found.commit) == ("mine", "mine", "org/m", dev)
    assert resolve("mine@main").commit == main


def test_progress_and_log_reach_the_door(hub: Any, files: dict[str, bytes]) -> None:
    """The callbacks given to resolve are told about the download."""
    hub.repo("org/m", files)
    seen: set[str] = set()
    resolve("org/m", progress=lambda name, _done, _total: seen.add(name))
    assert "model.safetensors" in seen


UNKNOWN = {
    "qwne": ["is no model", "did you mean qwen"],
    "Qwen": ["did you mean qwen"],
    "a/b/c": ["org/name[@revision]"],
    "https://huggingface.co/org/m": ["org/name[@revision]"],
    "xyzzy": ["gguf-pipeline models"],
    "": ["is no model"],
    "org/m@": ["is no model", "'org/m@'", "[@revision]"],
    "@main": ["is no model"],
    "../../etc/@x/y": ["is not there"],
}


@pytest.mark.parametrize("model", UNKNOWN)
def test_unknown_names(model: str) -> None:
    """What names nothing says what would, and the nearest alias."""
    with pytest.raises((UsageError, InputError)) as caught:
        resolve(model)
    for part in UNKNOWN[model]:
        assert part in str(caught.value)


def test_not_a_checkpoint(here: Path) -> None:
    """Missing folders, files, and folders without config.json each have their own hint."""
    (here / "m.gguf").write_bytes(b"GGUF")
    (here / "w.safetensors").write_bytes(b"")
    (here / "empty").mkdir()
    _checkpoint(here / "outer" / "inner")
    with pytest.raises(InputError, match="is not there"):
        resolve("./none")
    for model in ("w.safetensors", "./w.safetensors"):
        with pytest.raises(InputError, match="name the folder that it is in"):
            resolve(model)
    for model in ("empty", "./empty"):
        with pytest.raises(InputError, match=r"config\.json"):
            resolve(model)
    with pytest.raises(InputError, match="did you mean outer/inner"):
        resolve("./outer")


def test_revisions_only_for_repositories(here: Path) -> None:
    """A revision for a folder, or two different ones, is a usage error."""
    _checkpoint(here / "m")
    for call in (("./m", "main"), ("m", "main"), ("demo", "main"), ("org/m@a", "b")):
        with pytest.raises(UsageError, match="revision"):
            resolve(call[0], revision=call[1])


def test_alias_whose_folder_is_gone(here: Path) -> None:
    """A row with a folder that is not there names that folder."""
    (here / "models.toml").write_text('[mine]\nfolder = "gone"\n')
    assert aliases.load()["mine"].folder == here / "gone"
    with pytest.raises(InputError, match="gone: is not there"):
        resolve("mine")


def test_import_is_light() -> None:
    """A command that needs no Hub does not pay for its client."""
    code = "import sys, pipeline.source; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
