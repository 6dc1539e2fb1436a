from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Header, read_header
from pipeline.checkpoint import safetensors as module
from pipeline.checkpoint.safetensors import DTYPE_BITS
from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.types import SourceTensor

Write = Callable[..., Path]

GOLDEN = (
    b"\xc8\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt"},'
    b'"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},'
    b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
    b'"z":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}}     '
    b"\x00\x00\x80\x3f"
    b"\x01\x00\x02\x00\x03\x00\x04\x00\x05\x00\x06\x00"
)


def test_golden_bytes(tmp_path: Path) -> None:
    """A file written out by hand gives these names, types, shapes and places, in the order of the data."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOLDEN)
    assert read_header(path) == Header(
        path,
        {
            "a": SourceTensor("a", "F32", (), path, 208, 4),
            "b": SourceTensor("b", "BF16", (2, 3), path, 212, 12),
            "z": SourceTensor("z", "U8", (0,), path, 224, 0),
        },
        {"format": "pt"},
    )
    assert list(read_header(path).tensors) == ["a", "b", "z"]


def test_golden_bytes_suit_the_library() -> None:
    """The library itself takes the same bytes the same way."""
    rows = dict(safetensors.deserialize(GOLDEN))
    assert {name: (row["dtype"], tuple(row["shape"])) for name, row in rows.items()} == {
        "a": ("F32", ()),
        "b": ("BF16", (2, 3)),
        "z": ("U8", (0,)),
    }


def test_real_files_equal_the_library(real: Path) -> None:
    """Every tensor of every real file has the type, shape and bytes that the safetensors library reads."""
    for path in real.glob("*.safetensors"):
        header = read_header(path)
        data = path.read_bytes()
        rows = dict(safetensors.deserialize(data))
        assert rows.keys() == header.tensors.keys()
        for name, row in rows.items():
            tensor = header.tensors[name]
            assert (tensor.dtype, list(tensor.shape)) == (row["dtype"], row["shape"])
            assert data[tensor.offset : tensor.offset + tensor.n_bytes] == bytes(row["data"])


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_has_its_size(dtype: str, write: Write) -> None:
    """Eight elements of each type take as many bytes as one element has bits; one byte more is refused."""
    n = DTYPE_BITS[dtype]
    tensor = read_header(write({"t": _row(dtype, [8], 0, n)}, bytes(n))).tensors["t"]
    assert tensor.n_bytes == n
    with pytest.raises(FormatError, match="does not fit its shape"):
        read_header(write({"t": _row(dtype, [8], 0, n + 1)}, bytes(n + 1)))


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_library_knows_the_same_types(dtype: str, write: Write) -> None:
    """The library takes what this reader takes, type by type."""
    n = DTYPE_BITS[dtype]
    path = write({"t": _row(dtype, [8], 0, n)}, bytes(n))
    assert len(safetensors.deserialize(path.read_bytes())) == 1


def _row(dtype: Any = "U8", shape: Any = (1,), begin: Any = 0, end: Any = 1) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _one(**change: Any) -> dict[str, Any]:
    return {"t": {**_row(), **change}}


# case: (header, data, parts of the message)
EVIL: dict[str, tuple[Any, bytes, list[str]]] = {
    "empty header": (b"", b"\0\0", ["does not start as JSON object"]),
    "space first": (b" {}", b"", ["does not start as JSON object", "b' '"]),
    "array": (b"[]", b"", ["does not start as JSON object"]),
    "cut": (b'{"t":', b"", ["is not JSON", "character 5"]),
    "two objects": (b"{}{}", b"", ["is not JSON", "Extra data"]),
    "not utf-8": (b'{"\xff":1}', b"", ["is not UTF-8", "0xff at 2"]),
    "utf-16": ("{}".encode("utf-16-le"), b"", ["is not JSON"]),
    "control character": (b'{"a\x01":{}}', b"", ["is not JSON"]),
    "nan": (b'{"t":NaN}', b"", ["NaN, which is not JSON"]),
    "same name twice": (b'{"t":1,"t":2}', b"", ["has the key 't' twice"]),
    "same key twice": (b'{"t":{"dtype":"U8","dtype":"I8"}}', b"", ["has the key 'dtype' twice"]),
    "deep": (b'{"t":' + b"[" * 200 + b"]" * 200 + b"}", b"", ["nested too deep"]),
    "very deep": (b'{"t":' + b"[" * 1_000_000, b"", ["nested too deep"]),
    "long number": (b'{"t":' + b"9" * 1_000_000 + b"}", b"", ["a number of 1,000,000 characters"]),
    "many values": (b'{"t":[' + b"0," * 5_000_000 + b"0]}", b"", ["too many values", "2,000,000"]),
    "metadata text": ({"__metadata__": "pt"}, b"", ["__metadata__: is not an object", "a string"]),
    "metadata number": ({"__metadata__": {"n": 1}}, b"", ["__metadata__, 'n'", "something else than text", "a number"]),
    "metadata nested": ({"__metadata__": {"n": {}}}, b"", ["something else than text", "an object"]),
    "row is text": ({"t": "U8"}, b"", ["tensor t", "is not described", "a string"]),
    "row is null": ({"t": None}, b"", ["is not described", "null"]),
    "no shape": ({"t": {"dtype": "U8", "data_offsets": [0, 1]}}, b"\0", ["is not described", "dtype, shape"]),
    "key too many": (_one(stride=[1]), b"\0", ["is not described", "'stride'"]),
    "dtype number": (_one(dtype=8), b"\0", ["dtype is not a name"]),
    "dtype lower": (_one(dtype="u8"), b"\0", ["unknown type 'u8'", "BF16"]),
    "shape text": (_one(shape="1"), b"\0", ["shape is impossible", "a string"]),
    "shape negative": (_one(shape=[-1]), b"\0", ["shape is impossible", "[-1]"]),
    "shape float": (_one(shape=[1.0]), b"\0", ["shape is impossible", "[1.0]"]),
    "shape bool": (_one(shape=[True]), b"\0", ["shape is impossible", "[True]"]),
    "shape overflow": (_one(shape=[2**32, 2**32]), b"\0", ["shape is impossible", "2**60 elements"]),
    "shape overflow by byte": (_one(dtype="F64", shape=[2**60]), b"\0", ["does not fit its shape"]),
    "dimension over 64 bits": (_one(shape=[2**64 + 1]), b"\0", ["shape is impossible"]),
    "17 dimensions": (_one(shape=[1] * 17), b"\0", ["shape is impossible", "at most 16"]),
    "offsets text": (_one(data_offsets="01"), b"\0", ["data_offsets are impossible"]),
    "one offset": (_one(data_offsets=[1]), b"\0", ["data_offsets are impossible"]),
    "offsets backwards": (_one(data_offsets=[1, 0]), b"\0", ["data_offsets are impossible", "[1, 0]"]),
    "offset negative": (_one(data_offsets=[-1, 0]), b"\0", ["data_offsets are impossible"]),
    "offset float": (_one(data_offsets=[0, 1.0]), b"\0", ["data_offsets are impossible"]),
    "too small": (_one(shape=[2]), b"\0", ["does not fit its shape", "2 bytes for U8 [2]", "1 bytes (data_offsets"]),
    "half a byte": (_one(dtype="F4", shape=[3], data_offsets=[0, 1]), b"\0", ["does not fit", "2 bytes for F4"]),
    "hole at start": (_one(data_offsets=[1, 2]), b"\0\0", ["tensor t", "leaves a hole", "from 0", "found:    1"]),
    "hole": ({"a": _row(), "b": _row(begin=2, end=3)}, b"\0\0\0", ["tensor b", "leaves a hole", "from 1"]),
    "overlap": ({"a": _row("U8", [2], 0, 2), "b": _row(begin=1, end=2)}, b"\0\0", ["tensor b", "overlaps a", "from 2"]),
    "same place": ({"a": _row(), "b": _row()}, b"\0", ["tensor b", "overlaps a"]),
    "cut data": ({"a": _row(), "b": _row("U8", [9], 1, 10)}, b"\0\0", ["is cut short: b", "download the file again"]),
    "data behind": (_one(), b"\0\0", ["belong to no tensor", "download the file again"]),
    "no tensors but data": ({}, b"\0", ["belong to no tensor"]),
    "empty name": ({"": _row()}, b"\0", ["impossible name", "''"]),
    "nul name": ({"a\0": _row()}, b"\0", ["impossible name", r"'a\x00'"]),
    "newline name": ({"a\nb": _row()}, b"\0", ["impossible name"]),
    "surrogate name": (b'{"\\ud800":{}}', b"", ["impossible name"]),
    "escape name": ({"\x1b[31m": _row()}, b"\0", ["impossible name"]),
    "long name": ({"n" * 1001: _row()}, b"\0", ["impossible name", "(1,001 characters)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", EVIL)
def test_evil_headers(case: str, write: Write) -> None:
    """Each broken rule of the format has its message, with the file's name, and no message is long."""
    header, data, parts = EVIL[case]
    path = write(header, data)
    with pytest.raises(InputError) as caught:
        read_header(path)
    message = str(caught.value)
    for part in [str(path), *parts]:
        assert part in message
    assert len(message) < 1200
    assert message.isprintable() or "\n" in message
    assert "\x1b" not in message


def test_cut_file_says_how_much_is_there(write: Write) -> None:
    """A truncated file is called that, with both sizes."""
    path = write({"a": _row(), "b": _row("U8", [9], 1, 10)}, bytes(10))
    whole = path.stat().st_size
    os.truncate(path, whole - 3)
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert caught.value.what == "is cut short: b is not whole"
    assert caught.value.expected == f"{whole:,} bytes"
    assert caught.value.found == f"{whole - 3:,} bytes"
    os.truncate(path, 20)
    with pytest.raises(FormatError, match="is cut short: its header is not whole"):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"\2", struct.pack("<Q", 2) + b"{"])
def test_tiny_files(data: bytes, tmp_path: Path) -> None:
    """Less than a length and an empty object cannot be a safetensors file."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="is too short"):
        read_header(path)


def test_other_files_are_recognised(tmp_path: Path) -> None:
    """A Git LFS pointer, a web page and a length beyond any header are named for what they are."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(FormatError, match=r"(?s)Git LFS pointer.*git lfs pull"):
        read_header(path)
    for start in (b"<!DOCTYPE html>", b"\xff" * 16, struct.pack("<Q", 100_000_001) + b"{}"):
        path.write_bytes(start)
        with pytest.raises(FormatError, match="is not a safetensors file: the header's length is impossible"):
            read_header(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a pipe (which would block) and nothing at all are refused."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(FormatError, match="is not a file"):
            read_header(path)
    with pytest.raises(FormatError, match=r"(?s)cannot be read.*No such file"):
        read_header(tmp_path / "none")


def test_more_tensors_than_anyone_has(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tensors is limited."""
    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    header = {str(i): _row("U8", [0], 0, 0) for i in range(3)}
    assert len(read_header(write(header)).tensors) == 3
    header["3"] = header["0"]
    with pytest.raises(UnsupportedError, match="too many tensors"):
        read_header(write(header))


def test_evil_files_cost_little(write: Write) -> None:
    """The most values that a header may have take seconds at most, and some hundred megabytes."""
    path = write(b'{"t":[' + b"[]," * 660_000 + b"[]]}")
    code = """if True:
        import resource, sys, pathlib
        from pipeline.checkpoint import read_header
        from pipeline.errors import FormatError
        used = lambda: resource.getrusage(resource.RUSAGE_SELF)
        before = used()
        try:
            read_header(pathlib.Path(sys.argv[1]))
        except FormatError:
            print(used().ru_utime - before.ru_utime, used().ru_maxrss - before.ru_maxrss)
    """
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    seconds, kilobytes = (float(x) for x in done.stdout.split())
    assert seconds < 10
    assert kilobytes < 400_000


@given(st.binary(max_size=200))
def test_any_bytes_give_our_error_or_a_result(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Random files raise nothing but ours."""
    _survives(tmp_path_factory, data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_SIZES = st.integers(-1, 2**65) | st.integers(0, 4)
_ROWS = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPE_BITS, "X"]) | _JSON,
     "shape": st.lists(_SIZES, max_size=4) | _JSON,
     "data_offsets": st.lists(_SIZES, min_size=2, max_size=2) | _JSON},
)  # fmt: skip


@given(
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), _ROWS | _JSON, max_size=3), st.binary(max_size=16)
)
def test_any_json_gives_our_error_or_a_result(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes
) -> None:
    """Headers of the right kind with wrong values raise nothing but ours."""
    text = json.dumps(header).encode()
    _survives(tmp_path_factory, struct.pack("<Q", len(text)) + text + data)


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
def test_golden_with_one_byte_changed(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    """Every file near a good one is refused by us, or taken by the library too."""
    data = bytearray(GOLDEN)
    data[at] = value
    if _survives(tmp_path_factory, bytes(data)):
        safetensors.deserialize(bytes(data))


def _survives(factory: pytest.TempPathFactory, data: bytes) -> bool:
    path = factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except InputError:
        return False
    assert sum(t.n_bytes for t in header.tensors.values()) <= len(data)
    return True
