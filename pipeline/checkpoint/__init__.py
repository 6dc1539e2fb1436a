"""A checkpoint folder: what config.json says, where each tensor lies, and its values on demand."""

from pipeline.checkpoint._open import Checkpoint, open_checkpoint
from pipeline.checkpoint.lora import merge_adapter
from pipeline.checkpoint.reader import TensorReader, decode_rows
from pipeline.checkpoint.safetensors import Header, read_header
from pipeline.checkpoint.torch_zip import read_torch

__all__ = [
    "Checkpoint",
    "Header",
    "TensorReader",
    "decode_rows",
    "merge_adapter",
    "open_checkpoint",
    "read_header",
    "read_torch",
]
