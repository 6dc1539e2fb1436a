"""Damaged files, at random: a checked header or a FormatError, quickly, and never more liberal than libggml."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.gguf import GgufFile, GgufTensor, TensorEntry, describe, encode_header, read_gguf, tensor_type
from pipeline.types import KV, ValueType, array, boolean, string, u32

_METADATA = (
    string("general.architecture", "llama"),
    u32("general.alignment", 32),
    array("tokens", ValueType.STRING, ["a", "bc", "", "defg"]),
    array("scores", ValueType.FLOAT32, [0.5, -1.0]),
    array("flags", ValueType.BOOL, [True, False]),
    boolean("truth", True),
    KV("split.count", ValueType.UINT16, 1),
)
_TENSORS = (
    TensorEntry("a.weight", (2, 32), tensor_type("Q8_0").id, 0),
    TensorEntry("b.weight", (3, 2, 4), tensor_type("F16").id, 96),
    TensorEntry("c.bias", (5,), tensor_type("F32").id, 160),
)
_VALID = encode_header(_METADATA, _TENSORS) + bytes(160 + 32)
_HEADER_BYTES = len(_VALID) - 192

_numbers = st.sampled_from([0, 1, 2, 7, 9, 31, 32, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
_places = st.integers(0, _HEADER_BYTES)
_edits = st.one_of(
    st.tuples(st.just("set"), _places, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("set"), _places, _numbers.map(lambda n: n.to_bytes(8, "little"))),
    st.tuples(st.just("set"), _places, _numbers.map(lambda n: (n % 2**32).to_bytes(4, "little"))),
    st.tuples(st.just("insert"), _places, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("delete"), _places, st.integers(1, 40)),
    st.tuples(st.just("cut"), st.integers(0, len(_VALID)), st.none()),
    st.tuples(st.just("copy"), _places, _places),
)


def _edit(data: bytes, edit: tuple[str, int, Any]) -> bytes:
    kind, at, what = edit
    if kind == "set":
        return data[:at] + what + data[at + len(what) :]
    if kind == "insert":
        return data[:at] + what + data[at:]
    if kind == "delete":
        return data[:at] + data[at + what :]
    if kind == "copy":
        return data[:at] + data[what : what + 24] + data[at + 24 :]
    return data[:at]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One path, written again for every example."""
    return tmp_path_factory.mktemp("fuzz") / "f.gguf"


def _read(path: Path, data: bytes) -> GgufFile | None:
    path.write_bytes(data)
    try:
        return read_gguf(path)
    except FormatError:
        return None


def test_the_valid_file_is_valid(scratch: Path) -> None:
    """The file that the others are damaged copies of is read."""
    assert _read(scratch, _VALID) is not None


@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(_edits, min_size=1, max_size=3))
@example(edits=[("cut", 0, None)])
def test_damaged_files_are_refused_or_consistent(scratch: Path, edits: list[tuple[str, int, Any]]) -> None:
    """Whatever is done to a file, reading it gives FormatError or a header whose tensors lie in the file, apart."""
    data = _VALID
    for edit in edits:
        data = _edit(data, edit)
    file = _read(scratch, data)
    if file is None:
        return
    describe(file)
    end = file.data_start
    for tensor in file.tensors:
        assert tensor.offset >= end
        end = tensor.offset + tensor.n_bytes
        file.read_tensor_bytes(tensor, 0, bytearray(tensor.n_bytes))
    assert end <= len(data) or not file.tensors


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_noise_is_refused(scratch: Path, data: bytes) -> None:
    """Random bytes behind a valid magic and version give FormatError, or a header that can be written again."""
    file = _read(scratch, b"GGUF\3\0\0\0" + data)
    if file is not None:
        encode_header(tuple(file.metadata.values()), [_entry(file, t) for t in file.tensors], file.alignment)


def _entry(file: GgufFile, tensor: GgufTensor) -> TensorEntry:
    return TensorEntry(tensor.name, tensor.shape, tensor_type(tensor.type).id, tensor.offset - file.data_start)


@pytest.mark.native
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(_edits, min_size=1, max_size=2))
def test_what_we_take_libggml_takes(scratch: Path, libgguf: Any, edits: list[tuple[str, int, Any]]) -> None:
    """No file passes here that libggml's reader refuses."""
    data = _VALID
    for edit in edits:
        data = _edit(data, edit)
    if _read(scratch, data) is not None:
        assert libgguf.accepts(data)


def test_memory_stays_small(scratch: Path) -> None:
    """A count that promises billions of values costs no memory: lengths are checked before anything is allocated."""
    promises = [_VALID[:at] + b"\xff" * 7 + b"\x0f" + _VALID[at + 8 :] for at in range(8, _HEADER_BYTES - 8)]
    tracemalloc.start()
    for data in promises:
        _read(scratch, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
