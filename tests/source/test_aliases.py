from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import data
from pipeline.errors import UsageError
from pipeline.source import aliases


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "models.toml"
    path.write_text(text)
    return path


def test_shipped_rows(repository: Path) -> None:
    """The shipped file reads, has the demo in its folder, and pins no repository to a commit."""
    rows = aliases.read(repository / "models.toml")
    assert rows["demo"].folder == repository / "models" / "demo"
    assert rows["demo"].quant == "Q4_K_M"
    assert rows["qwen"].repo == "Qwen/Qwen2.5-0.5B-Instruct"
    assert 20 <= len(rows) <= 30
    for row in rows.values():
        assert row.description
        assert row.branch == "main"
        assert not re.fullmatch(r"[0-9a-f]{7,40}", row.branch)


def test_shipped_families_exist() -> None:
    """A family that a shipped row names has its template."""
    for row in aliases.read(data.path("models.toml")).values():
        assert row.family is None or (data.path("templates") / "chat" / f"{row.family}.j2").exists(), row


def test_later_files_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's file replaces shipped rows whole, the current folder's replaces both, the rest stays."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    user = _write(data.config_home(), '[qwen]\nrepo = "me/user"\n[smollm]\nrepo = "me/user"\nquant = "Q6_K"\n')
    here = _write(tmp_path, '[qwen]\nfolder = "there"\n')
    rows = aliases.load()
    assert list(rows) == sorted(rows)
    assert (rows["qwen"].repo, rows["qwen"].folder, rows["qwen"].origin) == (None, tmp_path / "there", here)
    assert (rows["smollm"].repo, rows["smollm"].quant, rows["smollm"].origin) == ("me/user", "Q6_K", user)
    assert rows["smollm"].description == ""
    assert rows["demo"].folder == data.path("models/demo")


def test_folder_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is meant from the models.toml it stands in, not from where the command runs."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    _write(data.config_home(), '[mine]\nfolder = "../models/mine"\n')
    assert aliases.load()["mine"].folder == tmp_path / "config" / "models" / "mine"


BAD = {
    "not toml": ("[qwen\n", ["is not TOML", "line 1"]),
    "not utf-8": (b"[q]\nrepo = '\xff'", ["is not TOML"]),
    "twice": ('[a]\nrepo="o/n"\n[a]\nrepo="o/n"', ["is not TOML"]),
    "row is text": ('qwen = "org/name"', ["[qwen]", "is not a table"]),
    "unknown key": (
        '[a]\nrepo = "o/n"\nquantization = "Q4_K_M"',
        ["unknown key 'quantization'", "did you mean quant?"],
    ),
    "no near key": ('[a]\nrepo = "o/n"\nxyz = "1"', ["unknown key 'xyz'", "repo, folder, branch"]),
    "number": ('[a]\nrepo = "o/n"\nbranch = 1', ["branch is not a text", "found:    1"]),
    "empty": ('[a]\nrepo = ""', ["repo is not a text"]),
    "nowhere": ('[a]\nquant = "Q8_0"', ["where the model is", "neither"]),
    "both": ('[a]\nrepo = "o/n"\nfolder = "x"', ["where the model is", "both"]),
    "branch of folder": ('[a]\nfolder = "x"\nbranch = "main"', ["no branches"]),
    "no org": ('[a]\nrepo = "name"', ["org/name", "found:    name"]),
    "quant": ('[a]\nrepo = "o/n"\nquant = "q4_k_m"', ["such as Q4_K_M", "found:    q4_k_m"]),
    "upper name": ('[Qwen]\nrepo = "o/n"', ["impossible name"]),
    "path name": ('["../x"]\nrepo = "o/n"', ["impossible name"]),
    "deep": ("a = " + "[" * 10_000, ["is not TOML"]),
    "big": ("#" * 1_000_001, ["is too big"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    """Whatever is wrong in a models.toml is a usage error that names the file, the row and the remedy."""
    text, parts = BAD[case]
    path = tmp_path / "models.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        aliases.read(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)
