"""An unfinished matrix is used only if it is the one that was kept, byte by byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from pipeline.calibrate import _unfinished
from pipeline.calibrate._pieces import Cut
from pipeline.errors import InputError
from pipeline.gguf import read_gguf

TEXTS = ["before.txt", "text.txt"]


def _matrix(path: Path, texts: list[str]) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_array("imatrix.datasets", texts)
    writer.add_uint32("imatrix.chunk_count", 8)
    writer.add_uint32("imatrix.chunk_size", 128)
    for name in ("blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"):
        writer.add_tensor(name, np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_comes_back(tmp_path: Path) -> None:
    """What was kept is found, without the name of the text that it is still being computed over."""
    made = _matrix(tmp_path / "made.gguf", TEXTS)
    kept = _unfinished.keep(made, tmp_path / "kept", "key", 8, Cut(66, 4))
    assert (
        _unfinished.find(tmp_path / "kept") == kept == _unfinished.Unfinished(tmp_path / "kept", "key", 8, Cut(66, 4))
    )
    old, new = read_gguf(made), read_gguf(tmp_path / "kept")
    assert new.value("imatrix.datasets") == ("before.txt",)
    assert (new.value("imatrix.chunk_count"), new.value("imatrix.chunk_size")) == (8, 128)
    assert [(t.name, t.shape) for t in new.tensors] == [(t.name, t.shape) for t in old.tensors]
    _unfinished.keep(_matrix(made, ["text.txt"]), tmp_path / "kept", "key", 8, Cut(66, 4))
    assert "imatrix.datasets" not in read_gguf(tmp_path / "kept").metadata


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    """That is no error."""
    assert _unfinished.find(tmp_path / "kept") is None


def test_any_other_byte_is_found_out(tmp_path: Path) -> None:
    """A changed byte of a number, the key or the sums makes it one that cannot be used, and so does a missing one."""
    path = tmp_path / "kept"
    _unfinished.keep(_matrix(tmp_path / "made.gguf", TEXTS), path, "the-key", 8, Cut(66, 4))
    data = path.read_bytes()
    file = read_gguf(path)
    places = [data.index(b"the-key"), data.index(b"unfinished.done") + len("unfinished.done") + 4]
    places += [tensor.offset + 4 for tensor in file.tensors]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match="unfinished matrix"):
            _unfinished.find(path)
    for other in (b"", data[:-40], _matrix(tmp_path / "made.gguf", TEXTS).read_bytes()):
        path.write_bytes(other)
        with pytest.raises(InputError):
            _unfinished.find(path)
