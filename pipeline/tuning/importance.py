"""Importance matrices: files of llama-imatrix come in, weights of each matrix's columns go out.

Two forms are read, GGUF and the older one without magic.  Numbers are those that llama-quantize makes of them
(common/imatrix-loader.cpp and load_imatrix in tools/quantize/quantize.cpp), and so are the keys it writes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError, from_os_error
from pipeline.gguf import GgufFile, GgufTensor, read_gguf
from pipeline.strict_json import has_file
from pipeline.types import KV, string, u32

F32 = NDArray[np.float32]

MAX_BYTES = 4 << 30  # of a file; those of the largest models have some hundred megabytes
_MAX_TEXT = 127  # bytes that llama-quantize keeps of a name
_SUMS, _COUNTS = ".in_sum2", ".counts"
_HINT = "make it again with `gguf-pipeline imatrix` or llama-imatrix"
# token_embd is looked up, not multiplied, so that a matrix of other columns says nothing about it.
_NOT_MULTIPLIED = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Importance:
    """An importance matrix: for a matrix by name the mean square of what each column met, float32 (n,), finite.

    Matrices of several experts have the columns of all of them, one after another.  *n_chunks* is 0 where the file does
    not tell.
    """

    path: Path
    sha256: str
    datasets: tuple[str, ...]
    n_chunks: int
    entries: Mapping[str, F32]

    def of(self, name: str, shape: tuple[int, ...]) -> F32 | None:
        """Return the weights for a tensor, (n_matrices, n_cols), or None if it has none.

        Raises:
            FormatError: if they are those of another shape.
        """
        found = self.entries.get(name)
        if found is None:
            return None
        n_matrices = shape[-3] if len(shape) > 2 else 1
        if len(found) == n_matrices * shape[-1]:
            return found.reshape(n_matrices, shape[-1])
        if name in _NOT_MULTIPLIED:
            return None
        raise FormatError(
            "the importance matrix is that of another model",
            where=f"{self.path}, {name}",
            expected=f"{n_matrices * shape[-1]} values",
            found=f"{len(found)}",
            hint=_HINT,
        )

    def metadata(self) -> tuple[KV, ...]:
        """Return the keys that llama-quantize writes; of the file its name alone: a path is no fact of a model."""
        made = [string("quantize.imatrix.file", _short(self.path.name))]
        if self.datasets:
            made.append(string("quantize.imatrix.dataset", _short(self.datasets[0])))
        made.append(u32("quantize.imatrix.entries_count", len(self.entries)))
        if self.n_chunks > 0:
            made.append(u32("quantize.imatrix.chunks_count", self.n_chunks))
        return tuple(made)

    def describe(self) -> str:
        """Say in a line which matrix it is."""
        return f"--imatrix {self.path.name} ({len(self.entries)} matrices, sha256:{self.sha256})"


def _short(text: str) -> str:
    return text.encode(errors="surrogateescape")[:_MAX_TEXT].decode(errors="surrogateescape")


def read_importance(path: Path) -> Importance:
    """Read an importance matrix of either form.

    Raises:
        FormatError: if it is no file, is neither, or not what its form says, or holds NaN, infinities or negative
            numbers.
        AccessError: if it cannot be read.
    """
    try:
        has_file(path)
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise FormatError("too large for an importance matrix", where=path, expected=MAX_BYTES, found=size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            read = _read_gguf(path) if is_gguf else _read_legacy(_Legacy(path, file, size))
    except OSError as e:
        raise from_os_error(e, "the importance matrix cannot be read", path) from e
    datasets, n_chunks, entries = read
    for name, values in entries.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise FormatError("an importance is no number, infinite or negative", where=f"{path}, {name}", hint=_HINT)
    return Importance(path, digest, datasets, n_chunks, entries)


_Read = tuple[tuple[str, ...], int, dict[str, F32]]


def _read_gguf(path: Path) -> _Read:
    file = read_gguf(path)
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    values = [file.value(key) for key in keys]
    texts, n_chunks, chunk_size = values
    are_texts = isinstance(texts, tuple) and all(isinstance(text, str) for text in texts)
    if not are_texts or type(n_chunks) is not int or type(chunk_size) is not int:
        raise FormatError(
            "a GGUF without what an importance matrix says of itself",
            where=path,
            expected=", ".join(keys),
            found=", ".join(key for key in keys if key in file.metadata) or "none of them",
            hint=_HINT,
        )
    sums = {t.name.removesuffix(_SUMS): t for t in file.tensors if t.name.endswith(_SUMS)}
    counts = {t.name.removesuffix(_COUNTS): t for t in file.tensors if t.name.endswith(_COUNTS)}
    if not sums or sums.keys() != counts.keys():
        single = min(sums.keys() ^ counts.keys(), default=None)
        raise FormatError("sums and counts do not belong together", where=path, found=single, hint=_HINT)
    return tuple(texts), n_chunks, {name: _mean(file, sums[name], counts[name]) for name in sorted(sums)}


def _mean(file: GgufFile, sums: GgufTensor, counts: GgufTensor) -> F32:
    """Divide the sums of each expert by its count; one that was never called weighs all columns alike."""
    total, count = _values(file, sums), _values(file, counts)
    if total.size % count.size or not (np.abs(count) < 2**31).all():
        raise FormatError(
            "counts do not fit the sums", where=f"{file.path}, {counts.name}", found=f"{count.size} counts", hint=_HINT
        )
    whole = (np.trunc(count + np.copysign(np.float32(0.5), count)))[:, None].astype(np.float32)
    means = np.ones((count.size, total.size // count.size), np.float32)
    np.divide(total.reshape(means.shape), whole, out=means, where=whole > 0)
    return means.reshape(-1)


def _values(file: GgufFile, tensor: GgufTensor) -> F32:
    if tensor.type != "F32":
        raise FormatError("not of type F32", where=f"{file.path}, {tensor.name}", found=tensor.type, hint=_HINT)
    values = np.empty(tensor.n_bytes // 4, np.float32)
    file.read_tensor_bytes(tensor, 0, values)
    return values


class _Legacy:
    """Takes numbers and texts from the older form, one after another."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self._size, self.at = path, file, size, 0

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self.at == self._size

    def number(self, what: str, least: int) -> int:
        """Take an int32 of at least *least*."""
        value: int = struct.unpack("<i", self.take(4, what))[0]
        if value < least:
            raise FormatError(
                f"{what} is impossible", where=f"{self.path}, byte {self.at - 4}", expected=f"at least {least}",
                found=value, hint=_HINT,
            )  # fmt: skip
        return value

    def take(self, n_bytes: int, what: str) -> bytes:
        """Take bytes."""
        part = self._file.read(min(n_bytes, self._size - self.at))
        if len(part) != n_bytes:
            raise FormatError(
                f"the file ends within {what}, or is no importance matrix", where=f"{self.path}, byte {self.at}",
                expected=f"{n_bytes} bytes", found=f"{len(part)} bytes", hint=_HINT,
            )  # fmt: skip
        self.at += n_bytes
        return part

    def text(self, what: str, least: int) -> str:
        """Take a text with its length before it; like C's, it ends at the first zero byte."""
        raw = self.take(self.number(f"the length of {what}", least), what)
        return raw.split(b"\0")[0].decode(errors="surrogateescape")


def _read_legacy(cursor: _Legacy) -> _Read:
    entries: dict[str, F32] = {}
    for index in range(cursor.number("the number of entries", 1)):
        name = cursor.text(f"the name of entry {index}", 1)
        if name in entries:
            raise FormatError("an entry stands twice", where=cursor.path, found=name, hint=_HINT)
        n_calls = cursor.number(f"the number of calls of {name}", 0)
        n_values = cursor.number(f"the number of values of {name}", 1)
        values = np.frombuffer(cursor.take(4 * n_values, f"the values of {name}"), "<f4").astype(np.float32)
        entries[name] = values / np.float32(n_calls) if n_calls else values
    if cursor.is_at_end:
        return (), 0, entries
    n_chunks = cursor.number("the number of chunks", 0)
    dataset = cursor.text("the name of the data", 0) if not cursor.is_at_end else ""
    return (dataset,) if dataset else (), n_chunks, entries
