"""Importance matrices: both forms are read as llama-quantize reads them, and bad files are refused."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import AccessError, FormatError, PipelineError
from pipeline.tuning import read_importance

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF of given keys and tensors."""

    def made(tensors: dict[str, Any], *, datasets: Any = ("a.txt",), chunks: Any = 3, size: Any = 512) -> Path:
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "")
        if datasets is not None:
            writer.add_array("imatrix.datasets", list(datasets))
        if chunks is not None:
            writer.add_uint32("imatrix.chunk_count", chunks)
        if size is not None:
            writer.add_uint32("imatrix.chunk_size", size)
        for name, values in tensors.items():
            writer.add_tensor(name, np.asarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return made


def f32(values: object) -> np.ndarray:
    """Make float32 numbers."""
    return np.asarray(values, np.float32)


def legacy(entries: list[tuple[bytes, int, list[float]]], tail: bytes = b"", n: int | None = None) -> bytes:
    """Make the older form."""
    parts = [struct.pack("<i", len(entries) if n is None else n)]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values)))
        parts.append(np.asarray(values, "<f4").tobytes())
    return b"".join(parts) + tail


def test_sums_are_divided_by_the_counts_of_each_expert(write: Write) -> None:
    """Each expert has its own count; one that was never called weighs all columns alike."""
    path = write({"w.in_sum2": f32([[2, 4], [5, 6], [9, 1]]), "w.counts": f32([[2], [0], [4]])})
    found = read_importance(path)
    assert found.entries["w"].tolist() == [1, 2, 1, 1, 2.25, 0.25]
    assert found.of("w", (3, 8, 2)).tolist() == [[1, 2], [1, 1], [2.25, 0.25]]  # type: ignore[union-attr]
    assert found.of("other", (8, 2)) is None
    assert (found.datasets, found.n_chunks) == (("a.txt",), 3)


def test_keys_are_those_of_llama_quantize(write: Write) -> None:
    """File, data set, entries and chunks, in this order; of the file its name alone, texts cut at 127 bytes."""
    path = write({"w.in_sum2": f32([[1]]), "w.counts": f32([[1]])}, datasets=["x" * 200, "second"])
    keys = [(kv.key.removeprefix("quantize.imatrix."), kv.value) for kv in read_importance(path).metadata()]
    assert keys == [("file", "m.gguf"), ("dataset", "x" * 127), ("entries_count", 1), ("chunks_count", 3)]


def test_without_data_set_and_chunks_their_keys_are_missing(tmp_path: Path) -> None:
    """What the file does not tell has no key."""
    (tmp_path / "old.dat").write_bytes(legacy([(b"w", 1, [1.0])]))
    keys = [kv.key for kv in read_importance(tmp_path / "old.dat").metadata()]
    assert keys == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]


def test_the_older_form(tmp_path: Path) -> None:
    """Values are divided by the calls where there are any; chunks and data set may follow."""
    tail = struct.pack("<ii", 9, 3) + b"x\0y"
    (tmp_path / "old.dat").write_bytes(legacy([(b"a", 4, [2, 8]), (b"b", 0, [3])], tail))
    found = read_importance(tmp_path / "old.dat")
    assert {name: values.tolist() for name, values in found.entries.items()} == {"a": [0.5, 2], "b": [3]}
    assert (found.datasets, found.n_chunks) == (("x",), 9)


def test_another_models_matrix_is_refused(write: Write) -> None:
    """Values for other columns are an error, but for the embeddings, which are not multiplied."""
    tensors = {"w": f32([[1, 2]]), "token_embd.weight": f32([[1, 2]])}
    path = write(
        {f"{name}.in_sum2": values for name, values in tensors.items()}
        | {f"{name}.counts": f32([[1]]) for name in tensors}
    )
    found = read_importance(path)
    with pytest.raises(FormatError, match="another model"):
        found.of("w", (8, 3))
    assert found.of("token_embd.weight", (8, 3)) is None


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({}, "do not belong together"),
        ({"w.in_sum2": f32([[1]])}, "do not belong together"),
        ({"w.counts": f32([[1]]), "v.in_sum2": f32([[1]])}, "do not belong together"),
        ({"w.in_sum2": f32([[1, 2, 3]]), "w.counts": f32([[1], [1]])}, "counts do not fit"),
        ({"w.in_sum2": f32([[1]]), "w.counts": f32([[np.nan]])}, "counts do not fit"),
        ({"w.in_sum2": f32([[1]]), "w.counts": f32([[3e38]])}, "counts do not fit"),
        ({"w.in_sum2": f32([[np.inf]]), "w.counts": f32([[1]])}, "infinite or negative"),
        ({"w.in_sum2": f32([[-1]]), "w.counts": f32([[1]])}, "infinite or negative"),
        ({"w.in_sum2": np.ones((1, 1), np.float16), "w.counts": f32([[1]])}, "not of type F32"),
    ],
)
def test_bad_tensors(tensors: dict[str, Any], match: str, write: Write) -> None:
    """Missing halves, counts that do not fit, other types, and what is no weight."""
    with pytest.raises(FormatError, match=match):
        read_importance(write(tensors))


@pytest.mark.parametrize("missing", ["datasets", "chunks", "size"])
def test_another_gguf_is_refused(missing: str, write: Write) -> None:
    """A GGUF without the three keys is no importance matrix."""
    with pytest.raises(FormatError, match=r"imatrix\.chunk_count"):
        read_importance(write({"w.in_sum2": f32([[1]]), "w.counts": f32([[1]])}, **{missing: None}))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "ends within the number of entries"),
        (b"\0\0\0", "ends within"),
        (legacy([], n=0), "number of entries is impossible"),
        (legacy([], n=-5), "number of entries is impossible"),
        (legacy([(b"w", 1, [1.0])], n=2), "ends within the length of the name"),
        (struct.pack("<ii", 1, 1 << 30), "ends within the name"),
        (struct.pack("<ii", 1, -1), "length of the name of entry 0 is impossible"),
        (struct.pack("<iicii", 1, 1, b"w", 1, 1 << 30), "ends within the values"),
        (struct.pack("<iicii", 1, 1, b"w", 1, 0), "number of values of w is impossible"),
        (struct.pack("<iicii", 1, 1, b"w", -1, 1), "number of calls of w is impossible"),
        (legacy([(b"w", 1, [1.0]), (b"w", 1, [1.0])]), "stands twice"),
        (legacy([(b"w", 1, [np.nan])]), "infinite or negative"),
        (legacy([(b"w", 1, [1.0])], b"\1"), "ends within the number of chunks"),
        (legacy([(b"w", 1, [1.0])], struct.pack("<ii", 1, 1 << 30)), "ends within the name of the data"),
    ],
)
def test_evil_files_of_the_older_form(data: bytes, match: str, tmp_path: Path) -> None:
    """Lengths are compared with what is there before anything is taken."""
    (tmp_path / "old.dat").write_bytes(data)
    with pytest.raises(FormatError, match=match):
        read_importance(tmp_path / "old.dat")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), is_gguf=st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, is_gguf: bool, tmp_path: Path) -> None:
    """No bytes end in anything but a matrix or an error of ours."""
    path = tmp_path / "any"
    path.write_bytes((b"GGUF" if is_gguf else b"") + data)
    with contextlib.suppress(PipelineError):
        assert read_importance(path).entries


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """No file, a folder, a pipe that nobody writes to, a device that never ends: an error that names it."""
    with pytest.raises(AccessError, match="none"):
        read_importance(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FormatError, match=f"{path}: is not a file"):
            read_importance(path)
