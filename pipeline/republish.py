"""A GGUF as the model: what its own header says of it, for a plan and for the Modelfile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pipeline import blueprint as blueprints
from pipeline import modelfile
from pipeline.errors import UnsupportedError
from pipeline.gguf import FILE_TYPES, PART_KEYS, GgufFile, read_parts
from pipeline.tokenizer import Tokenizer, tokenizer_of_gguf

_PLAIN = ("F32", "F16", "BF16")
_MODEL = ("model", None)  # of general.type; other kinds are adapters and parts of models


@dataclass(frozen=True)
class GgufModel:
    """A GGUF whose header is read; *blueprint* can give the file as it is, or quantize it."""

    blueprint: blueprints.Blueprint
    tokenizer: Tokenizer
    generation_config: dict[str, Any]
    licenses: tuple[str, ...]


def read_gguf_model(path: Path, *, requantize: bool) -> GgufModel:
    """Read the header of the GGUF at *path*; with *requantize*, it may be quantized though it is already.

    One part of a split model stands for all of them.

    Raises:
        FormatError: if it is no sound GGUF.
        UnsupportedError: if it is no language model.
    """
    parts = read_parts(path)
    file = parts[0]
    kind = file.value("general.type")
    if kind not in _MODEL:
        raise UnsupportedError(
            "the GGUF holds no whole model",
            where=path,
            expected='general.type "model"',
            found=kind,
            hint="an adapter or a projector is published together with its model, not alone",
        )
    blueprint = blueprints.from_gguf(parts, requantize=requantize)
    finished = _finished(parts)
    notes = []
    if len(parts) > 1:
        notes.append(f"{len(parts)} parts become one file: Ollama before 0.34 cannot load a split model")
    if requantize and any(tensor.type not in _PLAIN for part in parts for tensor in part.tensors):
        notes.append(f"{path.name} is {finished.recipe} already: what quantizing it again loses is added to that")
    license_ = file.value("general.license")
    return GgufModel(
        replace(blueprint, finished=finished, notes=tuple(notes)),
        tokenizer_of_gguf(file.metadata, path),
        modelfile.generation_config_of(file.metadata),
        (license_,) if isinstance(license_, str) and license_ else (),
    )


def _finished(parts: Sequence[GgufFile]) -> blueprints.Finished:
    first = parts[0]
    kept = tuple(kv for key, kv in first.metadata.items() if len(parts) == 1 or key not in PART_KEYS)
    if len(parts) > 1:
        return blueprints.Finished(None, file_type(parts), kept)
    return blueprints.Finished(first.path, file_type(parts), kept, first.data_start, first.file_size)


def file_type(parts: Sequence[GgufFile]) -> str:
    """Name the type of a whole GGUF: what its header says, else the type that most of its weights have.

    A header that names a plain type over quantized weights is not believed.
    """
    totals: Counter[str] = Counter()
    for tensor in (tensor for part in parts for tensor in part.tensors):
        if len(tensor.shape) > 1:
            totals[tensor.type] += prod(tensor.shape)
    most = max(totals, key=totals.__getitem__) if totals else "F32"
    stated = FILE_TYPES.get(parts[0].value("general.file_type", -1))
    if stated is None or (stated in _PLAIN and most not in _PLAIN):
        return most
    return stated
