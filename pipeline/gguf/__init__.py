"""GGUF files: a plan or parsed values come in, bytes of a file or a checked header come out."""

from pipeline.gguf.copy import copy_file
from pipeline.gguf.describe import describe
from pipeline.gguf.file_types import FILE_TYPES
from pipeline.gguf.header import TensorEntry, alignment_of, encode_header, encode_plan_header
from pipeline.gguf.reader import GgufFile, GgufTensor, Split, read_gguf
from pipeline.gguf.tensor_types import TensorType, padded, tensor_bytes, tensor_type
from pipeline.gguf.writer import GgufWriter

__all__ = [
    "FILE_TYPES",
    "GgufFile",
    "GgufTensor",
    "GgufWriter",
    "Split",
    "TensorEntry",
    "TensorType",
    "alignment_of",
    "copy_file",
    "describe",
    "encode_header",
    "encode_plan_header",
    "padded",
    "read_gguf",
    "tensor_bytes",
    "tensor_type",
]
