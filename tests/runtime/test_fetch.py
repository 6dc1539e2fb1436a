"""The source package comes through pip, is checked twice, and is there whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import AccessError, FormatError
from pipeline.runtime.fetch import fetch_package, unpack_source
from pipeline.runtime.pin import Pin, home


def _ignore(line: str) -> None:
    pass


def test_pip_fetches_and_builds_nothing(stand_in: Pin, tmp_path: Path) -> None:
    """The package arrives byte for byte, through the user's pip settings, and no temporary folder stays."""
    fetched = fetch_package(stand_in, _ignore)
    assert fetched.read_bytes() == (tmp_path / "packages" / stand_in.file).read_bytes()
    assert [path.name for path in home().iterdir()] == ["download"]


def test_a_package_with_another_checksum_is_refused(stand_in: Pin) -> None:
    """What the index offers must be the pinned file; nothing of another one is kept."""
    with pytest.raises(AccessError, match=r"could not get stand-in 1\.0") as caught:
        fetch_package(replace(stand_in, sha256="0" * 64), _ignore)
    assert "HASHES" in str(caught.value.found).upper()
    assert not stand_in.download.exists()


def test_a_package_nobody_has_says_what_to_do(stand_in: Pin) -> None:
    """Without a network the error names the folder where the file may be put by hand."""
    with pytest.raises(AccessError) as caught:
        fetch_package(replace(stand_in, package="stand-in-nowhere"), _ignore)
    assert str(stand_in.download.parent) in str(caught.value)


def test_a_file_put_there_by_hand_is_used(stand_in: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right file in the download folder is taken without asking pip; a wrong one is named, never replaced."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    stand_in.download.parent.mkdir(parents=True)
    stand_in.download.write_bytes((tmp_path / "packages" / stand_in.file).read_bytes())
    assert fetch_package(stand_in, _ignore) == stand_in.download
    stand_in.download.write_bytes(b"something else")
    with pytest.raises(FormatError, match="SHA-256 differs"):
        fetch_package(stand_in, _ignore)
    assert stand_in.download.read_bytes() == b"something else"


def test_the_tree_is_unpacked_once_and_whole(stand_in: Pin) -> None:
    """The rest of an interrupted unpacking is thrown away; a whole tree is left as it is."""
    partial = stand_in.source.with_name(f"{stand_in.source.name}.partial")
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    source = unpack_source(stand_in, _ignore)
    assert sorted(path.name for path in source.iterdir()) == ["CMakeLists.txt", "ggml.c", "main.c"]
    (source / "mark").write_text("")
    assert (unpack_source(stand_in, _ignore) / "mark").exists()
