"""Files that appear whole: what a living writer has is left alone, what a killed one left goes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import whole


def test_the_text_is_there_and_nothing_else(tmp_path: Path) -> None:
    """A text replaces the one before, folders are made, and no temporary file is left."""
    path = tmp_path / "a" / "b" / "text[1]*.json"
    for text in ("first", "zweiter, größer 世界"):
        whole.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    """Whatever happens before the end, the old file stays and the new one goes."""
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def break_off() -> None:
        with whole.beside(path) as (temporary, fd):
            whole.write_all(fd, memoryview(b"half"))
            assert temporary.read_bytes() == b"half"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """The next writer of the same file takes it away, and nothing of another file."""
    program = "import os, sys; from pathlib import Path; from pipeline import whole\n"
    program += "whole.open_beside(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    for name in ("x", "x.y"):
        done = subprocess.run([sys.executable, "-c", program, tmp_path / name], check=False)
        assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    whole.write_text(tmp_path / "x", "new")
    (left,) = (one for one in tmp_path.iterdir() if one.name != "x")
    assert left.name.startswith(".x.y.")


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """Two writers of one file do not take each other's temporary file; the last one to finish wins, whole."""
    with whole.beside(tmp_path / "x") as (temporary, fd):
        whole.write_text(tmp_path / "x", "second")
        assert temporary.exists()
        whole.write_all(fd, memoryview(b"first"))
        temporary.replace(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"first"


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Of texts written by many threads at once one is there in the end, whole, and no other file."""
    texts = [str(n) * 10_000 for n in range(8)]
    threads = [threading.Thread(target=whole.write_text, args=(tmp_path / "x", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_text(encoding="utf-8") in texts
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A file is not begun in a folder that is not there."""
    with pytest.raises(FileNotFoundError):
        whole.open_beside(tmp_path / "none" / "x")


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    """A folder, a pipe or a device under that name stays what it is; as root, a rename would replace /dev/null."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    for name in ("folder", "pipe", "device"):
        with pytest.raises(FileExistsError, match="has this name"):
            whole.open_beside(tmp_path / name)
        with pytest.raises(FileExistsError, match="has this name"), whole.folder_beside(tmp_path / name):
            pass
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "device").is_char_device()


def test_a_folder_of_files_is_swept_too(tmp_path: Path) -> None:
    """A folder for files that appear together is gone at the end, and one that a killed writer left with the next."""
    left = tmp_path / ".x.0123456789ab.part"
    left.mkdir()
    (left / "part").write_bytes(b"1")
    with whole.folder_beside(tmp_path / "x") as folder:
        (folder / "part").write_bytes(b"2")
        assert [one.name for one in tmp_path.iterdir()] == [folder.name]
    assert list(tmp_path.iterdir()) == []
