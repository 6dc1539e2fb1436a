"""GGUF files: a plan or parsed values come in, bytes of a file or a checked header come out."""

from pipeline.gguf.copy import copy_file
from pipeline.gguf.describe import describe
from pipeline.gguf.file_types import FILE_TYPES
from pipeline.gguf.header import TensorEntry, alignment_of, encode_header, encode_plan_header
from pipeline.gguf.parts import MAX_PARTS, PART_KEYS, part_paths, read_parts, whole_name
from pipeline.gguf.reader import GgufFile, GgufTensor, Split, read_gguf
from pipeline.gguf.tensor_types import TensorType, padded, tensor_bytes, tensor_type
from pipeline.gguf.writer import GgufWriter, refused

__all__ = [
    "FILE_TYPES",
    "MAX_PARTS",
    "PART_KEYS",
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
    "part_paths",
    "read_gguf",
    "read_parts",
    "refused",
    "tensor_bytes",
    "tensor_type",
    "whole_name",
]
