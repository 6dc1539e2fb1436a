"""An archive from elsewhere unpacks into its own folder, or not at all."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import FormatError, ResourceError
from pipeline.runtime import archive
from pipeline.runtime.archive import unpack_folder

Add = Callable[[tarfile.TarFile], None]


def _member(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"x", mode: int = 0o644) -> None:
    tar.addfile(_member(name, size=len(data), mode=mode), io.BytesIO(data))


def _archive(path: Path, *adds: Add) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        _add(tar, "top/vendor/llama.cpp/CMakeLists.txt", b"project(x)\n")
        for add in adds:
            add(tar)
    return path


def test_only_the_folder_is_unpacked_with_its_modes(tmp_path: Path) -> None:
    """Files below the folder arrive with content and executable bit; the rest of the archive does not."""
    made = _archive(
        tmp_path / "a.tar.gz",
        lambda tar: _add(tar, "top/setup.py"),
        lambda tar: _add(tar, "top/vendor/llama.cpp-other/file"),
        lambda tar: _add(tar, "top/vendor/llama.cpp/scripts/run.sh", b"#!/bin/sh\n", 0o4777),
        lambda tar: tar.addfile(_member("top/vendor/llama.cpp/empty", type=tarfile.DIRTYPE)),
    )
    unpack_folder(made, "vendor/llama.cpp", tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert sorted(found) == ["CMakeLists.txt", "scripts/run.sh"]
    assert found["CMakeLists.txt"].read_bytes() == b"project(x)\n"
    assert [p.stat().st_mode & 0o7777 for p in found.values()].count(0o755) == 1
    assert found["scripts/run.sh"].stat().st_mode & 0o7777 == 0o755


EVIL: dict[str, Add] = {
    "parent folder": lambda tar: _add(tar, "top/vendor/llama.cpp/../../../../evil"),
    "absolute": lambda tar: _add(tar, "/tmp/evil"),
    "backslash": lambda tar: _add(tar, "top\\..\\evil"),
    "symbolic link": lambda tar: tar.addfile(
        _member("top/vendor/llama.cpp/link", type=tarfile.SYMTYPE, linkname="/etc")
    ),
    "hard link": lambda tar: tar.addfile(
        _member("top/vendor/llama.cpp/hard", type=tarfile.LNKTYPE, linkname="top/vendor/llama.cpp/CMakeLists.txt")
    ),
    "device": lambda tar: tar.addfile(_member("top/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "pipe": lambda tar: tar.addfile(_member("top/vendor/llama.cpp/fifo", type=tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("add", EVIL.values(), ids=EVIL.keys())
def test_a_dangerous_member_stops_everything(tmp_path: Path, add: Add) -> None:
    """A name that leads out, a link or a device anywhere in the archive: an error, and not one file is written."""
    made = _archive(tmp_path / "a.tar.gz", add)
    with pytest.raises(FormatError):
        unpack_folder(made, "vendor/llama.cpp", tmp_path / "in" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    """A download that broke off is a format error, not a traceback."""
    made = _archive(tmp_path / "a.tar.gz", lambda tar: _add(tar, "top/vendor/llama.cpp/big", bytes(range(256)) * 4000))
    made.write_bytes(made.read_bytes()[:-200])
    with pytest.raises(FormatError, match=r"not a whole \.tar\.gz"):
        unpack_folder(made, "vendor/llama.cpp", tmp_path / "out")


def test_an_archive_without_the_folder_is_refused(tmp_path: Path) -> None:
    """The error names the folder that was looked for."""
    made = _archive(tmp_path / "a.tar.gz")
    with pytest.raises(FormatError, match=r"vendor/other\.cpp"):
        unpack_folder(made, "vendor/other.cpp", tmp_path / "out")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that unpacks to more than the limit is refused before anything is written."""
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    made = _archive(tmp_path / "a.tar.gz", lambda tar: _add(tar, "top/zeros", bytes(2000)))
    with pytest.raises(ResourceError):
        unpack_folder(made, "vendor/llama.cpp", tmp_path / "out")
    assert not (tmp_path / "out").exists()
