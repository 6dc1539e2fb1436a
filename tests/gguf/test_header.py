"""Headers as bytes: a literal, the PyPI writer's and libggml's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipeline.errors import FormatError
from pipeline.gguf import TensorEntry, encode_header
from pipeline.types import KV, Plan, ValueType, array, boolean, string, u32


def test_a_small_header_byte_by_byte() -> None:
    """One key, one tensor (2, 3), and zeros up to 32: exactly these bytes."""
    header = encode_header([u32("k", 258)], [TensorEntry("w", (2, 3), 0, 0)])
    assert header == (
        b"GGUF" + b"\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0"
        # key: length, text, type uint32, value
        b"\x01\0\0\0\0\0\0\0k" + b"\x04\0\0\0" + b"\x02\x01\0\0"
        # tensor: name, two dimensions, ne0 = 3, ne1 = 2, type F32, offset
        b"\x01\0\0\0\0\0\0\0w"
        + b"\x02\0\0\0"
        + b"\x03\0\0\0\0\0\0\0"
        + b"\x02\0\0\0\0\0\0\0"
        + b"\0\0\0\0"
        + b"\0\0\0\0\0\0\0\0"
        + bytes(14)
    )


def test_the_pypi_writer_writes_the_same(
    tmp_path: Path, rich: tuple[KV, ...], make_plan: Callable[..., Plan], entries: Any
) -> None:
    """Every value type, alone and in arrays, gives the bytes of the gguf package's writer."""
    shapes = [("a.weight", "F32", (2, 3)), ("b.weight", "F16", (4, 5, 2)), ("c.bias", "F32", (7,))]
    plan = make_plan(rich, shapes)
    writer = gguf.GGUFWriter(tmp_path / "pypi.gguf", "llama")
    for kv in rich[1:]:
        item = None if kv.item is None else gguf.GGUFValueType(kv.item)
        writer.add_key_value(kv.key, kv.value, gguf.GGUFValueType(kv.type), item)
    for name, kind, shape in shapes:
        writer.add_tensor(name, np.zeros(shape, np.float32 if kind == "F32" else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = (tmp_path / "pypi.gguf").read_bytes()
    assert encode_header(rich, entries(plan)) == written[: plan.data_start]
    assert len(written) == plan.file_bytes


@pytest.mark.native
def test_libggml_writes_the_same(libgguf: Any, tmp_path: Path, rich_plan: Plan, entries: Any) -> None:
    """The header is the one libggml gives, with outer dimensions of 1 left out."""
    data = [bytes(t.n_bytes) for t in rich_plan.tensors]
    header = libgguf.write(tmp_path / "libggml.gguf", rich_plan.metadata, entries(rich_plan), data)
    assert encode_header(rich_plan.metadata, entries(rich_plan)) == header


@pytest.mark.native
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_libggml_reads_it_and_writes_it_again(
    libgguf: Any, make_plan: Callable[..., Plan], rich_plan: Plan, entries: Any, alignment: int
) -> None:
    """A header of any alignment goes through libggml's reader and writer unchanged."""
    metadata = (*rich_plan.metadata, u32("general.alignment", alignment))
    plan = make_plan(metadata, [(t.name, t.type, t.shape) for t in rich_plan.tensors], alignment)
    header = encode_header(metadata, entries(plan), alignment)
    assert libgguf.rewrite(header) == header


@pytest.mark.native
def test_libggml_writes_empty_arrays_the_same(libgguf: Any, tmp_path: Path) -> None:
    """Empty arrays, and a header without tensors, are libggml's too."""
    metadata = [array("a", ValueType.STRING, []), array("b", ValueType.INT32, [])]
    assert encode_header(metadata, []) == libgguf.write(tmp_path / "empty.gguf", metadata, [], [])


def test_bytes_that_are_not_utf8_survive() -> None:
    """A surrogate escape becomes the byte it stands for."""
    header = encode_header([string("k", b"a\xff".decode("utf-8", "surrogateescape"))], [])
    assert b"\x02\0\0\0\0\0\0\0a\xff" in header


@pytest.mark.parametrize(
    "kv",
    [
        KV("k", ValueType.UINT8, 256),
        KV("k", ValueType.UINT32, -1),
        KV("k", ValueType.INT32, 1.5),
        KV("k", ValueType.FLOAT32, 1e39),
        KV("k", ValueType.STRING, 7),
        KV("k", ValueType.STRING, "\ud800"),
        KV("k", ValueType.ARRAY, (1, 2)),
        KV("k", ValueType.ARRAY, ((1,), (2,)), ValueType.ARRAY),
        array("k", ValueType.INT8, [1, 300]),
        array("k", ValueType.STRING, ["a", 1]),
        boolean("", True),
        u32("general.alignment", 64),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused(kv: KV) -> None:
    """A value outside its type, or a key that cannot be, is an error and never a wrapped number."""
    with pytest.raises(FormatError):
        encode_header([kv], [])


@pytest.mark.parametrize(
    "value", [KV("general.alignment", ValueType.UINT64, 32), u32("general.alignment", 48)], ids=str
)
def test_alignment_must_be_a_power_of_two(value: KV) -> None:
    """The alignment key is a uint32 power of two, as libggml asks for."""
    with pytest.raises(FormatError, match="power of two"):
        encode_header([value], [], 48)


@pytest.mark.parametrize(
    "tensors",
    [
        [TensorEntry("", (1,), 0, 0)],
        [TensorEntry("x" * 64, (1,), 0, 0)],
        [TensorEntry("ä" * 32, (1,), 0, 0)],
        [TensorEntry("\ud800", (1,), 0, 0)],
        [TensorEntry("w", (1, 1, 1, 1, 1), 0, 0)],
        [TensorEntry("w", (0, 3), 0, 0)],
        [TensorEntry("w", (2**40, 2**40), 0, 0)],
        [TensorEntry("w", (3,), 4, 0)],
        [TensorEntry("w", (2, 128), 12, 0)],
        [TensorEntry("w", (3,), 0, 32)],
        [TensorEntry("v", (9,), 0, 0), TensorEntry("w", (3,), 0, 32)],
        [TensorEntry("w", (3,), 0, 0), TensorEntry("w", (3,), 0, 32)],
    ],
    ids=str,
)
def test_tensors_that_libggml_would_refuse_are_refused(tensors: list[TensorEntry]) -> None:
    """Names, shapes, types and offsets that no reader takes are errors before a byte is written."""
    with pytest.raises(FormatError):
        encode_header([], tensors)


def test_a_repeated_key_is_refused() -> None:
    """Two values under one key are an error that names the key."""
    with pytest.raises(FormatError, match=r"a\.b"):
        encode_header([u32("a.b", 1), u32("a.b", 2)], [])
