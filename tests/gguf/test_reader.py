"""Reading headers: what is valid is read whole, what is not is refused with its place."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipeline.errors import FormatError, InputError
from pipeline.gguf import GgufTensor, Split, encode_header, encode_plan_header, read_gguf
from pipeline.types import KV, Plan, ValueType, array, string, u32


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _kv(key: bytes, kind: int, payload: bytes) -> bytes:
    return _text(key) + struct.pack("<i", kind) + payload


def _tensor(name: bytes, ne: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(ne)}qiQ", len(ne), *ne, type_id, offset)


def _file(
    kvs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """Put a file together by hand; *data* follows the padded header."""
    counts = len(tensors) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(kvs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data if tensors else head


def _array(item: int, n: int, payload: bytes = b"") -> bytes:
    return struct.pack("<iQ", item, n) + payload


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    """Give a function that reads bytes as a file."""

    def call(data: bytes) -> Any:
        path = tmp_path / "f.gguf"
        path.write_bytes(data)
        return read_gguf(path)

    return call


def test_a_small_file_byte_by_byte(read: Any) -> None:
    """One key and one tensor, put together by hand, are read as they stand."""
    data = _file((_kv(b"k", 4, b"\x02\x01\0\0"),), (_tensor(b"w", (3, 2)),), bytes(24))
    file = read(data)
    assert file.metadata == {"k": u32("k", 258)}
    assert file.tensors == (GgufTensor("w", (2, 3), "F32", 96, 24),)
    assert (file.version, file.alignment, file.data_start, file.file_size) == (3, 32, 96, 120)
    assert file.split is None
    assert (file.value("k"), file.value("none", 5)) == (258, 5)
    assert file.tensor("w") is file.tensors[0]
    with pytest.raises(FormatError, match="no such tensor"):
        file.tensor("v")


def test_version_2_is_read(read: Any) -> None:
    """Version 2 has the layout of version 3."""
    assert read(_file((_kv(b"k", 0, b"\x07"),), version=2)).value("k") == 7


def test_every_value_type_comes_back(read: Any, rich: tuple[KV, ...]) -> None:
    """What the writer encodes, the reader gives back, types included."""
    assert tuple(read(encode_header(rich, [])).metadata.values()) == rich


def test_values_that_are_not_utf8_come_back_as_the_same_bytes(read: Any) -> None:
    """Tokens may be any bytes: they survive reading and writing."""
    data = _file((_kv(b"s", 8, _text(b"a\xff")), _kv(b"t", 9, _array(8, 2, _text(b"\xf0\x9f") + _text(b"ok")))))
    assert encode_header(tuple(read(data).metadata.values()), []) == data.ljust(96, b"\0")


def test_the_pypi_writers_file_is_read(tmp_path: Path) -> None:
    """A file of the gguf package is read with its values, shapes and bytes."""
    path = tmp_path / "pypi.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_token_list(["a", "Ġb"])
    weights = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    writer.add_tensor("a.weight", weights)
    writer.add_tensor("b.weight", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.value("llama.context_length") == 512
    assert file.value("tokenizer.ggml.tokens") == ("a", "Ġb")
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in file.tensors] == [
        ("a.weight", (1, 3, 4), "F32", 48),
        ("b.weight", (5,), "F16", 10),
    ]
    out = np.empty((2, 4), np.float32)
    file.read_tensor_bytes(file.tensors[0], 16, out)
    assert np.array_equal(out, weights[0, 1:])


@pytest.mark.native
def test_libggmls_file_is_read(libgguf: Any, tmp_path: Path, rich_plan: Plan, entries: Any) -> None:
    """A file of libggml's writer is read with all its values and places."""
    path = tmp_path / "libggml.gguf"
    libgguf.write(path, rich_plan.metadata, entries(rich_plan), [bytes(t.n_bytes) for t in rich_plan.tensors])
    file = read_gguf(path)
    assert tuple(file.metadata.values()) == rich_plan.metadata
    placed = [(t.name, t.type, t.n_bytes, t.offset - file.data_start) for t in file.tensors]
    assert placed == [(t.name, t.type, t.n_bytes, t.offset) for t in rich_plan.tensors]


def test_a_part_of_a_split_model_says_so(read: Any) -> None:
    """The three split keys are read together; a count of one is no split."""
    no, count = KV("split.no", ValueType.UINT16, 1), KV("split.count", ValueType.UINT16, 3)
    total = KV("split.tensors.count", ValueType.INT32, 291)
    assert read(encode_header([no, count, total], [])).split == Split(1, 3, 291)
    assert read(encode_header([KV("split.no", ValueType.UINT16, 0), u32("split.count", 1)], [])).split is None


def test_trailing_padding_may_be_missing(read: Any) -> None:
    """The last tensor may end the file, as llama.cpp allows, or be padded, as its writer does."""
    for n_padding in (0, 5, 8):
        data = _file((), (_tensor(b"w", (6,)),), bytes(24 + n_padding))
        assert read(data).tensors[0].n_bytes == 24


def test_a_header_alone_may_be_padded(read: Any) -> None:
    """A file with only metadata is valid with and without padding."""
    head = _file((_kv(b"k", 0, b"\x07"),))
    assert read(head).tensors == read(head.ljust(64, b"\0")).tensors == ()


EVIL = {
    "empty file": (b"", 0),
    "another magic": (b"GGML" + bytes(60), 0),
    "version 0": (_file(version=0), 4),
    "version 1": (_file(version=1), 4),
    "version 4": (_file(version=4), 4),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), 4),
    "more tensors than bytes": (_file(n_tensors=10), 8),
    "negative number of tensors": (_file(n_tensors=2**64 - 1), 8),
    "more keys than bytes": (_file(n_kv=10), 16),
    "negative number of keys": (_file(n_kv=2**63), 16),
    "more keys than any model has": (_file((bytes(14 * 70000),), n_kv=70000), 16),
    "empty key": (_file((_kv(b"", 2, b"\0\0"),)), 24),
    "key is not UTF-8": (_file((_kv(b"\xff", 0, b"\0"),)), 24),
    "key longer than the file": (_file((struct.pack("<Q", 2**63) + bytes(20),)), 24),
    "duplicate key": (_file((_kv(b"k", 0, b"\0"), _kv(b"k", 0, b"\0"))), 38),
    "unknown value type": (_file((_kv(b"k", 13, bytes(8)),)), 33),
    "negative value type": (_file((_kv(b"k", -1, bytes(8)),)), 33),
    "bool of two": (_file((_kv(b"k", 7, b"\2"),)), 37),
    "bool of two in an array": (_file((_kv(b"k", 9, _array(7, 2, b"\1\2")),)), 37 + 4),
    "string longer than the file": (_file((_kv(b"k", 8, struct.pack("<Q", 100)),)), 37),
    "string of 2^64 - 1 bytes": (_file((_kv(b"k", 8, struct.pack("<Q", 2**64 - 1)),)), 37),
    "array of arrays": (_file((_kv(b"k", 9, _array(9, 1, _array(0, 1, b"\0"))),)), 37),
    "unknown element type": (_file((_kv(b"k", 9, _array(77, 1, bytes(8))),)), 37),
    "array longer than the file": (_file((_kv(b"k", 9, _array(4, 3, bytes(8))),)), 41),
    "array of 2^62 numbers": (_file((_kv(b"k", 9, _array(10, 2**62)),)), 41),
    "array of 2^61 strings": (_file((_kv(b"k", 9, _array(8, 2**61)),)), 41),
    "array element longer than the file": (_file((_kv(b"k", 9, _array(8, 1, _text(b"a")[:-1])),)), 49),
    "alignment 0": (_file((_kv(b"general.alignment", 4, bytes(4)),)), 24),
    "alignment 48": (_file((_kv(b"general.alignment", 4, b"\x30\0\0\0"),)), 24),
    "alignment as uint64": (_file((_kv(b"general.alignment", 10, b"\x20" + bytes(7)),)), 24),
    "split part 3 of 3": (encode_header([u32("split.no", 3), u32("split.count", 3)], []), 24),
    "split number is text": (encode_header([string("split.no", "0"), u32("split.count", 3)], []), 24),
    "empty tensor name": (_file((), (_tensor(b"", (1,)),), bytes(4)), 24),
    "tensor name too long": (_file((), (_tensor(b"x" * 64, (1,)),), bytes(4)), 24),
    "tensor name is not UTF-8": (_file((), (_tensor(b"\xc3", (1,)),), bytes(4)), 24),
    "duplicate tensor": (_file((), (_tensor(b"w", (1,)), _tensor(b"w", (1,), 0, 32)), bytes(64)), 57),
    "five dimensions": (_file((), (_tensor(b"w", (1,) * 5),), bytes(4)), 33),
    "2^32 - 1 dimensions": (_file((), (_text(b"w") + b"\xff" * 4 + bytes(20),), bytes(4)), 33),
    "empty dimension": (_file((), (_tensor(b"w", (0,)),)), 33),
    "negative dimension": (_file((), (_tensor(b"w", (-4, -1)),), bytes(16)), 33),
    "dimensions that overflow": (_file((), (_tensor(b"w", (2**40, 2**40)),), bytes(16)), 33),
    "product that wraps to 4": (_file((), (_tensor(b"w", (2**62 + 1, 4)),), bytes(16)), 33),
    "unknown tensor type": (_file((), (_tensor(b"w", (1,), 99),), bytes(4)), 45),
    "removed tensor type": (_file((), (_tensor(b"w", (32,), 4),), bytes(32)), 45),
    "negative tensor type": (_file((), (_tensor(b"w", (1,), -1),), bytes(4)), 45),
    "row ends inside a block": (_file((), (_tensor(b"w", (128, 2), 12),), bytes(144)), 53),
    "first tensor not at 0": (_file((), (_tensor(b"w", (1,), 0, 32),), bytes(36)), 49),
    "misaligned offset": (_file((), (_tensor(b"v", (1,)), _tensor(b"w", (1,), 0, 4)), bytes(64)), 82),
    "overlapping tensors": (_file((), (_tensor(b"v", (16,)), _tensor(b"w", (1,), 0, 32)), bytes(96)), 82),
    "a hole between tensors": (_file((), (_tensor(b"v", (1,)), _tensor(b"w", (1,), 0, 64)), bytes(96)), 82),
    "offset beyond the file": (_file((), (_tensor(b"w", (1,), 0, 2**63),), bytes(32)), 49),
    "tensor larger than the file": (_file((), (_tensor(b"w", (2**40,)),), bytes(64)), 128),
    "last tensor cut off": (_file((), (_tensor(b"w", (9,)),), bytes(35)), 99),
    "bytes behind the last tensor": (_file((), (_tensor(b"w", (1,)),), bytes(33)), 96),
    "bytes behind a header alone": (_file().ljust(33, b"\0"), 32),
}


@pytest.mark.parametrize(("data", "offset"), EVIL.values(), ids=EVIL.keys())
def test_evil_files_are_refused_with_the_place(read: Any, tmp_path: Path, data: bytes, offset: int) -> None:
    """Each kind of damage is a FormatError that names the file and the byte."""
    with pytest.raises(FormatError) as error:
        read(data)
    assert error.value.where == f"{tmp_path / 'f.gguf'}, byte {offset}"


def test_the_big_endian_error_says_what_to_do(read: Any) -> None:
    """A big-endian file is recognised, and the hint names the tool that converts it."""
    with pytest.raises(FormatError, match=r"gguf_convert_endian\.py"):
        read(EVIL["big endian"][0])


def test_a_file_cut_off_anywhere_is_refused(read: Any, plain_file: tuple[Path, bytes]) -> None:
    """No prefix of a file is a valid file, down to the last byte of its last tensor."""
    whole = plain_file[1]
    file = read(whole)
    for n_bytes in range(file.tensors[-1].offset + file.tensors[-1].n_bytes):
        with pytest.raises(FormatError, match="byte"):
            read(whole[:n_bytes])


def test_a_header_with_too_many_values_is_refused(tmp_path: Path) -> None:
    """A sparse file cannot make the reader hold more values than any model has."""
    path = tmp_path / "f.gguf"
    path.write_bytes(_file((_kv(b"k", 9, _array(0, 5_000_000)),)))
    os.truncate(path, 6_000_000)
    with pytest.raises(FormatError, match="impossible number of elements of k"):
        read_gguf(path)


def test_a_header_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """A single value of gigabytes is refused before it is read."""
    path = tmp_path / "f.gguf"
    path.write_bytes(_file((_kv(b"k", 8, struct.pack("<Q", 1 << 32)),)))
    os.truncate(path, 1 << 33)
    with pytest.raises(FormatError, match="header is too large"):
        read_gguf(path)


def test_long_token_lists_cross_buffers(tmp_path: Path) -> None:
    """Lists far larger than a read come back whole, strings on the border included."""
    tokens = [f"token {i} " + "ä" * (i % 37) for i in range(60_000)]
    scores = [float(i) for i in range(60_000)]
    metadata = [
        array("tokens", ValueType.STRING, tokens),
        array("scores", ValueType.FLOAT32, scores),
        string("template", "x" * 3_000_000),
        array("types", ValueType.INT32, range(60_000)),
    ]
    path = tmp_path / "f.gguf"
    path.write_bytes(encode_header(metadata, []))
    assert list(read_gguf(path).metadata.values()) == metadata


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    """A path without a file is named in the error."""
    with pytest.raises(InputError, match=r"none\.gguf"):
        read_gguf(tmp_path / "none.gguf")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A folder or a pipe is refused, and nobody waits for a pipe to be written."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="regular file"):
            read_gguf(path)


@pytest.mark.parametrize(("start", "n_bytes"), [(-1, 4), (0, 25), (24, 1), (25, 0)])
def test_reads_stay_inside_the_tensor(plain_file: tuple[Path, bytes], start: int, n_bytes: int) -> None:
    """A range that leaves the tensor is refused, not filled with its neighbour."""
    file = read_gguf(plain_file[0])
    with pytest.raises(FormatError, match="leaves the tensor"):
        file.read_tensor_bytes(file.tensors[0], start, bytearray(n_bytes))


def test_a_file_that_changed_is_refused(plain_file: tuple[Path, bytes]) -> None:
    """Offsets of one file are never used on another under the same name."""
    path, content = plain_file
    file = read_gguf(path)
    (path.parent / "new").write_bytes(content)
    (path.parent / "new").replace(path)
    with pytest.raises(FormatError, match="changed"):
        file.read_tensor_bytes(file.tensors[0], 0, bytearray(4))


def test_threads_read_at_once(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    """Many threads reading parts of one tensor each get their own bytes."""
    plan = make_plan((), [("w", "F32", (64, 256))])
    content = np.random.default_rng(7).bytes(plan.tensors[0].n_bytes)
    path = tmp_path / "f.gguf"
    path.write_bytes(encode_plan_header(plan.metadata, plan.tensors) + content)
    file = read_gguf(path)
    wrong: list[int] = []

    def work(first: int) -> None:
        out = bytearray(1024)
        for start in range(first * 1024, len(content), 8 * 1024):
            file.read_tensor_bytes(file.tensors[0], start, out)
            if out != content[start : start + 1024]:
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
