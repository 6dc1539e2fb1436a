"""GGUF content for the tests, a plan of it, and libggml's own writer and reader over ctypes."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.gguf import TensorEntry, encode_plan_header, padded, tensor_bytes, tensor_type
from pipeline.types import KV, Plan, PlannedTensor, ValueType, array, boolean, f32, string, u32

MakePlan = Callable[..., Plan]

_CTYPES = {
    ValueType.UINT8: ("u8", ct.c_uint8),
    ValueType.INT8: ("i8", ct.c_int8),
    ValueType.UINT16: ("u16", ct.c_uint16),
    ValueType.INT16: ("i16", ct.c_int16),
    ValueType.UINT32: ("u32", ct.c_uint32),
    ValueType.INT32: ("i32", ct.c_int32),
    ValueType.FLOAT32: ("f32", ct.c_float),
    ValueType.BOOL: ("bool", ct.c_bool),
    ValueType.UINT64: ("u64", ct.c_uint64),
    ValueType.INT64: ("i64", ct.c_int64),
    ValueType.FLOAT64: ("f64", ct.c_double),
}


def _rich() -> tuple[KV, ...]:
    limits = {
        ValueType.UINT8: (0, 255),
        ValueType.INT8: (-128, 127),
        ValueType.UINT16: (0, 65535),
        ValueType.INT16: (-32768, 32767),
        ValueType.UINT32: (0, 2**32 - 1),
        ValueType.INT32: (-(2**31), 2**31 - 1),
        ValueType.FLOAT32: (-0.0, 0.5, float("inf"), float(np.float32(1e-6))),
        ValueType.BOOL: (True, False),
        ValueType.UINT64: (0, 2**64 - 1),
        ValueType.INT64: (-(2**63), 2**63 - 1),
        ValueType.FLOAT64: (0.1, -1e300),
        ValueType.STRING: ("", "Ġthe", "世界 🦙", "a\nb"),
    }
    scalars = [KV(f"one.{kind.name.lower()}", kind, values[-1]) for kind, values in limits.items()]
    arrays = [array(f"many.{kind.name.lower()}", kind, values) for kind, values in limits.items()]
    return (string("general.architecture", "llama"), *scalars, *arrays, f32("last", 0.1), boolean("truth", False))


@pytest.fixture(scope="session")
def rich() -> tuple[KV, ...]:
    """Metadata with every value type, alone and in arrays, at the ends of its range."""
    return _rich()


@pytest.fixture(scope="session")
def shapes() -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Name, type and row-major shape of tensors with one to four dimensions, some not filling their padding."""
    return (
        ("token_embd.weight", "Q4_K", (3, 256)),
        ("blk.0.attn_norm.weight", "F32", (5,)),
        ("blk.0.ffn_gate_exps.weight", "Q8_0", (2, 3, 64)),
        ("blk.0.conv.weight", "F16", (2, 2, 3, 7)),
        ("x" * 63, "BF16", (1, 9)),
        ("output.weight", "Q6_K", (1, 1, 2, 512)),
    )


@pytest.fixture(scope="session")
def make_plan() -> MakePlan:
    """Give a function that plans a file: (metadata, [(name, type, shape), ...], alignment) -> Plan."""

    def make(
        metadata: Sequence[KV] = (), tensors: Sequence[tuple[str, str, tuple[int, ...]]] = (), alignment: int = 32
    ) -> Plan:
        planned, offset = [], 0
        for name, kind, shape in tensors:
            size = tensor_bytes(kind, shape)
            planned.append(PlannedTensor(name, shape, kind, size, offset))
            offset += padded(size, alignment)
        data_start = len(encode_plan_header(metadata, planned))
        return Plan("F32", tuple(metadata), tuple(planned), data_start, data_start + offset)

    return make


@pytest.fixture(scope="session")
def rich_plan(make_plan: MakePlan, rich: tuple[KV, ...], shapes: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Plan:
    """A plan with all value types and all shapes."""
    return make_plan(rich, shapes)


@pytest.fixture(scope="session")
def tensor_data() -> Callable[[PlannedTensor], bytes]:
    """Give a function that makes bytes for a planned tensor, different for each name."""

    def make(tensor: PlannedTensor) -> bytes:
        rng = np.random.default_rng(len(tensor.name) * 1000 + tensor.offset)
        return rng.integers(0, 256, tensor.n_bytes, dtype=np.uint8).tobytes()

    return make


@pytest.fixture
def plain_file(tmp_path: Path, make_plan: MakePlan) -> tuple[Path, bytes]:
    """A small valid file, its path and its bytes: two keys, an array, two tensors."""
    metadata = (string("general.architecture", "llama"), u32("a.b", 7), array("t", ValueType.STRING, ["x", "yz"]))
    plan = make_plan(metadata, [("one.weight", "F32", (2, 3)), ("two.weight", "Q8_0", (1, 64))])
    data = encode_plan_header(plan.metadata, plan.tensors).ljust(plan.file_bytes, b"\1")
    path = tmp_path / "plain.gguf"
    path.write_bytes(data)
    return path, data


# The library holds on to its log function for the life of the process.
_NO_LOG = ct.CFUNCTYPE(None, ct.c_int, ct.c_char_p, ct.c_void_p)(lambda *_: None)


class _InitParams(ct.Structure):
    """`struct ggml_init_params`."""

    _fields_: ClassVar[Any] = [("mem_size", ct.c_size_t), ("mem_buffer", ct.c_void_p), ("no_alloc", ct.c_bool)]


class _GgufInitParams(ct.Structure):
    """`struct gguf_init_params`."""

    _fields_: ClassVar[Any] = [("no_alloc", ct.c_bool), ("ctx", ct.c_void_p)]


class LibGguf:
    """The gguf_* functions of libggml-base."""

    def __init__(self, library: Path) -> None:
        self._lib = lib = ct.CDLL(str(library))
        lib.ggml_log_set(_NO_LOG, None)
        pointers = ("ggml_init", "ggml_new_tensor", "gguf_init_empty", "gguf_init_from_buffer")
        for name in pointers:
            getattr(lib, name).restype = ct.c_void_p
        lib.ggml_init.argtypes = [_InitParams]
        lib.ggml_new_tensor.argtypes = [ct.c_void_p, ct.c_int, ct.c_int, ct.POINTER(ct.c_int64)]
        lib.gguf_init_from_buffer.argtypes = [ct.c_char_p, ct.c_size_t, _GgufInitParams]
        lib.gguf_get_meta_size.restype = ct.c_size_t
        lib.ggml_type_size.restype = ct.c_size_t
        lib.ggml_blck_size.restype = ct.c_int64
        lib.ggml_type_name.restype = ct.c_char_p

    def write(self, path: Path, metadata: Sequence[KV], tensors: Sequence[TensorEntry], data: Sequence[bytes]) -> bytes:
        """Write a file with libggml's writer and return its header alone, as libggml gives it."""
        lib = self._lib
        context = ct.c_void_p(lib.gguf_init_empty())
        memory = ct.c_void_p(lib.ggml_init(_InitParams(1 << 20, None, True)))
        for kv in metadata:
            self._set(context, kv)
        for entry, content in zip(tensors, data, strict=True):
            ne = (ct.c_int64 * len(entry.shape))(*reversed(entry.shape))
            tensor = ct.c_void_p(lib.ggml_new_tensor(memory, entry.type_id, len(entry.shape), ne))
            lib.ggml_set_name(tensor, entry.name.encode())
            lib.gguf_add_tensor(context, tensor)
            lib.gguf_set_tensor_data(context, entry.name.encode(), content)
        header = self._header(context)
        assert lib.gguf_write_to_file(context, str(path).encode(), ct.c_bool(False))
        lib.ggml_free(memory)
        lib.gguf_free(context)
        return header

    def rewrite(self, data: bytes) -> bytes:
        """Read a header and give what libggml's writer makes of it."""
        context = ct.c_void_p(self._lib.gguf_init_from_buffer(data, len(data), _GgufInitParams(True, None)))
        assert context
        header = self._header(context)
        self._lib.gguf_free(context)
        return header

    def accepts(self, data: bytes) -> bool:
        """Whether libggml's reader takes *data*; its header alone is looked at."""
        found = self._lib.gguf_init_from_buffer(data, len(data), _GgufInitParams(True, None))
        if found:
            self._lib.gguf_free(ct.c_void_p(found))
        return bool(found)

    def type_row(self, type_id: int) -> tuple[str, int, int] | None:
        """Return name, elements and bytes of a block, or None for a number without a type."""
        block = int(self._lib.ggml_blck_size(type_id))
        if not block:
            return None
        return self._lib.ggml_type_name(type_id).decode(), block, int(self._lib.ggml_type_size(type_id))

    def _header(self, context: ct.c_void_p) -> bytes:
        header = ct.create_string_buffer(self._lib.gguf_get_meta_size(context))
        self._lib.gguf_get_meta_data(context, header)
        return header.raw

    def _set(self, context: ct.c_void_p, kv: KV) -> None:
        key = kv.key.encode()
        if kv.type is ValueType.STRING:
            self._lib.gguf_set_val_str(context, key, kv.value.encode())
        elif kv.type is not ValueType.ARRAY:
            name, kind = _CTYPES[kv.type]
            getattr(self._lib, f"gguf_set_val_{name}")(context, key, kind(kv.value))
        elif kv.item is ValueType.STRING:
            texts = (ct.c_char_p * len(kv.value))(*(v.encode() for v in kv.value))
            self._lib.gguf_set_arr_str(context, key, texts, ct.c_size_t(len(kv.value)))
        else:
            assert kv.item is not None
            values = (_CTYPES[kv.item][1] * len(kv.value))(*kv.value)
            self._lib.gguf_set_arr_data(context, key, ct.c_int(kv.item), values, ct.c_size_t(len(kv.value)))


@pytest.fixture(scope="session")
def libgguf(llama: Any) -> LibGguf:
    """Give the GGUF code of libggml itself, of the vendored llama.cpp."""
    return LibGguf(llama.library("ggml-base"))


@pytest.fixture(scope="session")
def entries() -> Callable[[Plan], list[TensorEntry]]:
    """Give a function that lists a plan's tensors as header entries."""
    return lambda plan: [TensorEntry(t.name, t.shape, tensor_type(t.type).id, t.offset) for t in plan.tensors]
