"""The values that stages hand to each other.  All are frozen; none reads or writes a file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError

Shape = tuple[int, ...]
_FLOAT32_MAX = float(np.finfo(np.float32).max)
Tile = npt.NDArray[np.uint8]


class ValueType(IntEnum):
    """Types of a GGUF metadata value (`enum gguf_type` in gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class KV:
    """One key and its value in a GGUF header; *item* is the element type of an ARRAY."""

    key: str
    type: ValueType
    value: Any
    item: ValueType | None = None


def u16(key: str, value: int) -> KV:
    """Make an unsigned 16-bit entry."""
    return KV(key, ValueType.UINT16, int(value))


def i32(key: str, value: int) -> KV:
    """Make a signed 32-bit entry."""
    return KV(key, ValueType.INT32, int(value))


def u32(key: str, value: int) -> KV:
    """Make an unsigned 32-bit entry."""
    return KV(key, ValueType.UINT32, int(value))


def f32(key: str, value: float) -> KV:
    """Make a float32 entry; the value is rounded to float32 here, so that equal files have equal values.

    Raises:
        FormatError: if it is NaN or infinite, or too large for float32.
    """
    return KV(key, ValueType.FLOAT32, to_float32(key, value))


def to_float32(where: str, value: float) -> float:
    """Round *value* to float32.

    Raises:
        FormatError: if it is NaN or infinite, or too large; it names *where*.
    """
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error):  # the latter for a whole number of some hundred digits
        rounded = float("inf")
    if abs(rounded) <= _FLOAT32_MAX:  # false for NaN too
        return rounded
    raise FormatError(
        "a value does not fit float32",
        where=where,
        expected=f"a number up to {_FLOAT32_MAX:.7g}",
        found=repr(value)[:80],
    )


def boolean(key: str, value: bool) -> KV:
    """Make a bool entry."""
    return KV(key, ValueType.BOOL, bool(value))


def string(key: str, value: str) -> KV:
    """Make a UTF-8 string entry."""
    return KV(key, ValueType.STRING, value)


def array(key: str, item: ValueType, values: Sequence[Any]) -> KV:
    """Make an array entry with elements of type *item*."""
    return KV(key, ValueType.ARRAY, tuple(values), item)


@dataclass(frozen=True)
class SourceTensor:
    """Where one tensor of the checkpoint lies, as its header says.

    *dtype* is the safetensors name ("BF16", "F16", "F32", ...); *shape* is row-major (the last dimension is
    contiguous); *offset* is absolute in *path*, in bytes.  *view* gives its values where they are not simply these
    bytes in their order: a matrix that was saved transposed, or that an adapter changes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int
    view: View | None = None


class Log(Protocol):
    """Where work says what it does (progress.Reporter, or a silent one)."""

    def stage(self, text: str) -> None:
        """Say that a stage begins."""

    def note(self, text: str) -> None:
        """Say something the user must know."""

    def bar(self, text: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show one long step: the callback takes what is done and what there is in all, in the same unit."""


class View(Protocol):
    """An output tensor as an expression over source tensors (views.py); a frozen value."""

    @property
    def shape(self) -> Shape:
        """The output's shape, row-major."""

    @property
    def dtype(self) -> str:
        """The type that `read` gives: the source's own, or "F32" where values are computed."""

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The source tensors underneath."""

    def read(self, reader: Any, rows: np.ndarray, columns: slice, out: Tile) -> None:
        """Fill *out* with rows of the tensor.

        Args:
            reader: reads the files (views.RowReader).
            rows: int64 row numbers; a vector is one row.
            columns: a slice of elements of each row, with step 1.
            out: uint8 (n_rows, bytes of the columns in `dtype`), C-contiguous.
        """


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output file.

    *shape* is row-major; GGUF stores it reversed (ne0 first).  *type* is a ggml type name ("Q4_K").  *view* says where
    its values come from; None where only the header matters.  *offset* is relative to the start of the data section
    and a multiple of 32.  *importance*, float32 (n_matrices, n_cols), weighs the columns of each matrix.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    offset: int
    view: View | None = None
    importance: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def n_cols(self) -> int:
        """Length of a row, in elements."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        n = 1
        for d in self.shape[:-1]:
            n *= d
        return n


@dataclass(frozen=True)
class Plan:
    """A whole GGUF file, decided before a weight is read.

    *tensors* are in file order.  *data_start* is the absolute offset of the data section (the header, padded),
    *file_bytes* the exact size of the file.  *verbatim* is a GGUF that the file is a copy of, byte by byte.  *tuning*
    says in a few lines how the recipe was changed.
    """

    recipe: str
    metadata: tuple[KV, ...]
    tensors: tuple[PlannedTensor, ...]
    data_start: int
    file_bytes: int
    notes: tuple[str, ...] = ()
    verbatim: Path | None = None
    tuning: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A model on this machine: *folder* holds the checkpoint; *gguf* is the file where the model is a GGUF.

    *adapter* is the folder of an adapter that is merged into it.  *repository* ("org/name") and *commit* are None for a
    local folder; *name* is what the model is called.  An *alias* may name the chat *family*.
    """

    name: str
    folder: Path
    repository: str | None = None
    revision: str | None = None
    commit: str | None = None
    alias: str | None = None
    family: str | None = None
    gguf: Path | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class FileHead:
    """The beginning of a file that is not on this machine yet: *data* from its first byte on, *size* of the whole."""

    data: bytes
    size: int


@dataclass(frozen=True)
class Blob:
    """A file by content: digest "sha256:<64 hex>" and size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Layer:
    """A blob with its media type, as it stands in a manifest."""

    media_type: str
    blob: Blob


@dataclass(frozen=True)
class Check:
    """One part of a proof: *state* is "proven", "not checked" or "different"."""

    name: str
    state: str
    detail: str = ""
    command: str | None = None


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says, as data; the text is rendered from templates/Modelfile.j2.

    *parameters* are pairs in order; a repeated name (stop) is a list in Ollama's own terms.  *requires* is the oldest
    Ollama that is meant to run it, *renderer* and *parser* name code that Ollama brings.  *notes* say what a
    person should know of it.
    """

    parameters: tuple[tuple[str, int | float | bool | str], ...] = ()
    template: str | None = None
    system: str | None = None
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    family: str | None = None
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    notes: tuple[str, ...] = ()
