"""Constants of the GGUF layout that writer and reader share (gguf.h)."""

from __future__ import annotations

from pipeline.types import ValueType

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)  # 1 had 32-bit counts; libggml refuses it too
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its final zero
MAX_ELEMENTS = 2**63 - 1  # ggml counts elements in int64

# struct's code of each fixed-size value; all are little endian, bool is one byte
CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
