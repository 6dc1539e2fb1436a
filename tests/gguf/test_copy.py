from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import AccessError, FormatError
from pipeline.gguf import copy_file


def test_copy(tmp_path: Path) -> None:
    """The copy has the bytes of the source, replaces what was there, and the digest is theirs."""
    data = bytes(range(256)) * 40_000
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"old")
    seen = []
    blob = copy_file(tmp_path / "a", tmp_path / "b", len(data), lambda done, total: seen.append((done, total)))
    assert (tmp_path / "b").read_bytes() == data
    assert (blob.digest, blob.size) == ("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
    assert seen[-1] == (len(data), len(data))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_nothing_half_done(tmp_path: Path) -> None:
    """A source that changed or vanished leaves the target and its folder as they were."""
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(FormatError, match="changed"):
        copy_file(tmp_path / "a", tmp_path / "b", 6, lambda *_: None)
    with pytest.raises(AccessError, match="cannot be copied"):
        copy_file(tmp_path / "none", tmp_path / "b", 6, lambda *_: None)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
