"""The matrix of a calibration that is not at its end, beside the file it will become.

It is a GGUF as llama-imatrix reads it, with keys of our own that say what it was computed from, and how far.  It takes
its name when it is whole; what is in it is hashed again before it is used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import crash
from pipeline.calibrate._pieces import Cut
from pipeline.errors import FormatError
from pipeline.gguf import GgufFile, GgufTensor, GgufWriter, read_gguf
from pipeline.plan import plain_plan
from pipeline.types import string, u32

_OURS = "unfinished."
_NUMBERS = ("done", "total", "piece")
_DATASETS = "imatrix.datasets"


def path_for(output: Path) -> Path:
    """Return where the unfinished matrix of *output* lies."""
    return output.with_name(f".{output.name}.unfinished")


@dataclass(frozen=True)
class Unfinished:
    """The matrix over *done* chunks, at *path*; *key* says of what."""

    path: Path
    key: str
    done: int
    cut: Cut


def keep(made: Path, path: Path, key: str, done: int, cut: Cut) -> Unfinished:
    """Keep the matrix *made*, which llama-imatrix wrote over *done* chunks, at *path*.

    The text that it was made of is no longer named in it: the next run adds that name again.

    Raises:
        InputError: if *made* is no GGUF.
        ResourceError: if the disk is full.
        AccessError: if the folder refuses.
    """
    file = read_gguf(made)
    texts = file.metadata[_DATASETS]
    metadata = tuple(kv for kv in file.metadata.values() if kv.key != _DATASETS)
    if len(texts.value) > 1:
        metadata += (replace(texts, value=texts.value[:-1]),)
    numbers = (done, cut.total, cut.piece)
    metadata += (string(_OURS + "key", key), string(_OURS + "sha256", _digest(file, key, numbers)))
    metadata += tuple(u32(_OURS + name, number) for name, number in zip(_NUMBERS, numbers, strict=True))
    plan = plain_plan(metadata, [(t.name, t.shape, t.type) for t in file.tensors])
    with GgufWriter(path, plan) as out:
        for planned, tensor in zip(plan.tensors, file.tensors, strict=True):
            out.begin(planned)
            out.write(_values(file, tensor))
            out.end()
        out.commit()
    crash.point("matrix saved")
    return Unfinished(path, key, done, cut)


def find(path: Path) -> Unfinished | None:
    """Return what is kept at *path*, or None if nothing is.

    Raises:
        InputError: if it is not what `keep` writes.
    """
    if not path.exists():
        return None
    file = read_gguf(path)
    key, digest = file.value(_OURS + "key"), file.value(_OURS + "sha256")
    numbers = tuple(file.value(_OURS + name) for name in _NUMBERS)
    if type(key) is not str or any(type(n) is not int for n in numbers) or digest != _digest(file, key, numbers):
        raise FormatError("not an unfinished matrix, or a damaged one", where=path)
    done, total, piece = numbers
    return Unfinished(path, key, done, Cut(total, piece))


def _digest(file: GgufFile, key: str, numbers: tuple[int, ...]) -> str:
    sha256 = hashlib.sha256(repr((key, numbers)).encode())
    for tensor in file.tensors:
        sha256.update(tensor.name.encode())
        sha256.update(_values(file, tensor).data)
    return sha256.hexdigest()


def _values(file: GgufFile, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
    values = np.empty(tensor.n_bytes, np.uint8)
    file.read_tensor_bytes(tensor, 0, values)
    return values
