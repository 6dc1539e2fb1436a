"""Read the headers of a pytorch_model.bin, the zip file that torch.save writes; nothing in it is run.

The format (torch/serialization.py, caffe2/serialize/inline_container.cc): a zip file of stored entries under one
folder; `data.pkl`, a pickle, says which windows of which storages the tensors are; `data/<key>` are the storages, plain
little-endian elements.  A tensor is therefore a span of the file, as in safetensors, and streams from where it is.
"""

from __future__ import annotations

import stat
import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pipeline.checkpoint._pickle import MAX_BYTES, Storage, StoredTensor, read_state_dict
from pipeline.checkpoint._zip import Entry, read_directory
from pipeline.checkpoint.safetensors import DTYPE_BITS, MAX_TENSORS, check_name
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import SourceTensor
from pipeline.views import Stored, Transposed

_PICKLE = "data.pkl"
_FILE_VERSIONS = range(1, 11)  # kMinSupportedFileFormatVersion to kMaxSupportedFileFormatVersion
_MAX_NOTE = 100  # bytes of `version` and `byteorder`
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # a pickle of torch's old magic number
_LFS = b"version https://git-lfs"
_SAVE_AGAIN = 'torch.save(torch.load("{name}", weights_only=True, map_location="cpu"), "{name}")'


def read_torch(path: Path) -> dict[str, SourceTensor]:
    """Read and check the headers of *path*; return its tensors, in the order of their names.

    A tensor that was saved as the transpose of a matrix has a view of its own, `Transposed`.

    Raises:
        FormatError: if the file breaks a rule of its format.
        UnsupportedError: if it is of another kind, would run code, or has a tensor with holes between its elements.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
            raise FormatError("is not a file", where=path, expected="a file written by torch.save")
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as e:
        raise FormatError(
            "cannot be read", where=path, found=e.strerror or e, hint="check that the file is there and readable"
        ) from e


def _read(path: Path, file: BinaryIO) -> dict[str, SourceTensor]:
    _check_kind(path, file.read(len(_LFS)))
    entries = _below_root(path, read_directory(path, file))
    _check_notes(path, file, entries)
    state = read_state_dict(_content(path, file, entries[_PICKLE], MAX_BYTES), f"{path}, {_PICKLE}")
    if len(state) > MAX_TENSORS:
        raise UnsupportedError(
            "has too many tensors", where=path, expected=f"at most {MAX_TENSORS:,}", found=f"{len(state):,}"
        )
    return {name: _tensor(path, name, state[name], entries) for name in sorted(state)}


def _check_kind(path: Path, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04"):
        return
    if start.startswith(_LFS):
        raise FormatError("is a Git LFS pointer, not the weights", where=path, hint="run: git lfs pull")
    if start.startswith(_LEGACY):
        again = _SAVE_AGAIN.format(name=path.name)
        raise UnsupportedError(
            "is a pickle in the form of torch before 1.6, which is not read",
            where=path,
            expected="a zip file, as torch.save writes since 1.6",
            hint=f"take the repository's safetensors, or run, where torch is installed: {again}",
        )
    raise FormatError(
        "is no file that torch.save wrote",
        where=path,
        expected=b"PK\x03\x04",
        found=start[:4],
        hint="download the file again",
    )


def _below_root(path: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return the entries by their names below the one folder that all are in."""
    roots = {name.partition("/")[0] for name in entries}
    below = {name.partition("/")[2]: entry for name, entry in entries.items()}
    if len(roots) != 1 or _PICKLE not in below:
        raise FormatError(
            "is a zip file, but not one of torch.save",
            where=path,
            expected=f"one folder with {_PICKLE}",
            found=", ".join(list(entries)[:3]) or "no entries",
        )
    if "constants.pkl" in below or any(name.startswith("code/") for name in below):
        raise UnsupportedError(
            "is TorchScript, a program with its weights",
            where=path,
            expected="weights alone",
            hint="save the state dict of the original model, or take its safetensors",
        )
    return below


def _check_notes(path: Path, file: BinaryIO, entries: dict[str, Entry]) -> None:
    """Check the two small entries that change how the others are read."""
    if "byteorder" in entries:
        order = _content(path, file, entries["byteorder"], _MAX_NOTE)
        if order != b"little":
            raise UnsupportedError(
                "was written on a big-endian machine", where=path, expected="byteorder little", found=order
            )
    if "version" in entries:
        version = _content(path, file, entries["version"], _MAX_NOTE).strip()
        if not version.isdigit() or int(version) not in _FILE_VERSIONS:
            raise UnsupportedError("has an unknown version", where=path, expected="1 to 10", found=version[:20])


def _content(path: Path, file: BinaryIO, entry: Entry, limit: int) -> bytes:
    """Read a whole entry of at most *limit* bytes and check its CRC."""
    if entry.n_bytes > limit:
        raise UnsupportedError(
            f"the entry {entry.name} is too big",
            where=path,
            expected=f"at most {limit:,} bytes",
            found=f"{entry.n_bytes:,}",
        )
    file.seek(entry.offset)
    data = file.read(entry.n_bytes)
    if len(data) != entry.n_bytes or zlib.crc32(data) != entry.crc:
        raise FormatError(
            f"the entry {entry.name} is damaged",
            where=path,
            expected=f"CRC {entry.crc:#010x}",
            found=f"{zlib.crc32(data):#010x}",
            hint="download the file again",
        )
    return data


def _tensor(path: Path, name: str, tensor: StoredTensor, entries: dict[str, Entry]) -> SourceTensor:
    check_name(name, f"{path}, {_PICKLE}")
    where = f"{path}, tensor {name}"
    item = DTYPE_BITS[tensor.storage.dtype] // 8
    entry = _storage_entry(tensor.storage, item, entries, where)
    n = 1
    for d in tensor.shape:
        n *= d
    shape, stride = tensor.shape, tensor.stride
    is_transposed = not _is_contiguous(shape, stride)
    if is_transposed:
        shape, stride = _swapped(shape), _swapped(stride)
    if not _is_contiguous(shape, stride):
        raise UnsupportedError(
            "a tensor was saved with holes or in another order of dimensions",
            where=where,
            expected="contiguous elements, or the transpose of a matrix",
            found=f"shape {list(tensor.shape)}, stride {list(tensor.stride)}",
            hint="call .contiguous() on it before torch.save",
        )
    if n and tensor.start + n > tensor.storage.n_elements:
        raise FormatError(
            "a tensor leaves its storage",
            where=where,
            expected=f"at most {tensor.storage.n_elements:,} elements",
            found=f"elements {tensor.start:,} to {tensor.start + n:,}",
        )
    stored = SourceTensor(name, tensor.storage.dtype, shape, path, entry.offset + tensor.start * item, n * item)
    return replace(stored, shape=tensor.shape, view=Transposed(Stored(stored))) if is_transposed else stored


def _storage_entry(storage: Storage, item: int, entries: dict[str, Entry], where: str) -> Entry:
    entry = entries.get(f"data/{storage.key}")
    if entry is None or entry.n_bytes != storage.n_elements * item:
        raise FormatError(
            "the data of a tensor is missing or has another size",
            where=where,
            expected=f"data/{storage.key[:40]} with {storage.n_elements * item:,} bytes",
            found="no such entry" if entry is None else f"{entry.n_bytes:,} bytes",
            hint="download the file again",
        )
    return entry


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Say whether the elements follow each other in row-major order; strides of single elements mean nothing."""
    step = 1
    for d, s in zip(reversed(shape), reversed(stride), strict=True):
        if d != 1 and s != step:
            return 0 in shape
        step *= d
    return True


def _swapped(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (*dims[:-2], *reversed(dims[-2:]))
