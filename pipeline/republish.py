"""A GGUF as the model: what its own header says of it, for a plan and for the Modelfile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pipeline import blueprint as blueprints
from pipeline import modelfile
from pipeline.errors import UnsupportedError
from pipeline.gguf import FILE_TYPES, GgufFile, read_gguf
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

    Raises:
        FormatError: if it is no sound GGUF.
        UnsupportedError: if it is split, or no language model.
    """
    file = read_gguf(path)
    kind = file.value("general.type")
    if kind not in _MODEL:
        raise UnsupportedError(
            "the GGUF holds no whole model",
            where=path,
            expected='general.type "model"',
            found=kind,
            hint="an adapter or a projector is published together with its model, not alone",
        )
    blueprint = blueprints.from_gguf(file, requantize=requantize)
    finished = blueprints.Finished(
        path, file_type(file), tuple(file.metadata.values()), file.data_start, file.file_size
    )
    notes = []
    if requantize and any(tensor.type not in _PLAIN for tensor in file.tensors):
        notes.append(f"{path.name} is {finished.recipe} already: what quantizing it again loses is added to that")
    license_ = file.value("general.license")
    return GgufModel(
        replace(blueprint, finished=finished, notes=tuple(notes)),
        tokenizer_of_gguf(file.metadata, path),
        modelfile.generation_config_of(file.metadata),
        (license_,) if isinstance(license_, str) and license_ else (),
    )


def file_type(file: GgufFile) -> str:
    """Name the type of a whole GGUF: what its header says, else the type that most of its weights have.

    A header that names a plain type over quantized weights is not believed.
    """
    totals: Counter[str] = Counter()
    for tensor in file.tensors:
        if len(tensor.shape) > 1:
            totals[tensor.type] += prod(tensor.shape)
    most = max(totals, key=totals.__getitem__) if totals else "F32"
    stated = FILE_TYPES.get(file.value("general.file_type", -1))
    if stated is None or (stated in _PLAIN and most not in _PLAIN):
        return most
    return stated
