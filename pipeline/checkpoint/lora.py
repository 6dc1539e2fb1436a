"""Merge a LoRA adapter into a checkpoint, tile by tile: no merged checkpoint is ever written.

A merged tensor is a view over the checkpoint's own tensor, under the checkpoint's own name, so whatever the
architecture does with it afterwards (permuting heads, joining experts) follows by itself.

The value, by which two runs, machines or numbers of threads agree to the last bit:

    delta  = 0 + b[0]*a[0] + b[1]*a[1] + ...    in float32, in the order of the rank, each product and each sum rounded
    merged = W + delta * scale                  in float32, then rounded to nearest-even to the type that W has

This is what PEFT's merge_and_unload does where it holds the adapter in float32, its default; only the order of its
matrix product's additions differs, which torch leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np

from pipeline.checkpoint._adapter import Adapter, LowRank, read_adapter
from pipeline.checkpoint._open import Checkpoint
from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import has_file, read_optional, read_text
from pipeline.types import Shape, SourceTensor, Tile, View
from pipeline.views import ITEM_BYTES, Floats, RowNumbers, RowReader, Transposed, view_of

_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_BLOCK = 1 << 16  # elements whose sums stay in the second-level cache over all ranks


@dataclass(frozen=True)
class Merged:
    """*base* plus *scale* times the product of *left*, (n_rows, r), and *right*, (r, n_cols), in the type of *base*."""

    base: View
    left: View
    right: View
    scale: float

    @property
    def shape(self) -> Shape:
        """The shape of the base."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The type of the base."""
        return self.base.dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The base's tensors, then the adapter's."""
        return (*self.base.sources, *self.left.sources, *self.right.sources)

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read, add, round; see `View.read`."""
        rank = self.right.shape[0]
        self.base.read(reader, rows, columns, out)
        values = np.empty((len(rows), out.shape[1] // ITEM_BYTES[self.dtype]), np.float32)
        reader.decode(self.dtype, out, values)
        left = _floats(self.left, reader, rows, slice(None), rank)
        right = _floats(self.right, reader, np.arange(rank), columns, values.shape[1])
        add_product(values, left, right, self.scale)
        _round(values, self.dtype, out)


@dataclass(frozen=True)
class Rounded:
    """*view* in the type *dtype*, rounded to nearest-even."""

    view: View
    dtype: str

    @property
    def shape(self) -> Shape:
        """The shape underneath."""
        return self.view.shape

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """What lies underneath."""
        return self.view.sources

    def read(self, reader: RowReader, rows: RowNumbers, columns: slice, out: Tile) -> None:
        """Read and round; see `View.read`."""
        values = _floats(self.view, reader, rows, columns, out.shape[1] // ITEM_BYTES[self.dtype])
        _round(values, self.dtype, out)


def add_product(values: Floats, left: Floats, right: Floats, scale: float) -> None:
    """Add scale * (left @ right) to *values*, (n_rows, n_cols), in the fixed order of the module's docstring."""
    step = max(1, _BLOCK // max(1, values.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused where tiles are encoded
        for first in range(0, len(values), step):
            part, factors = values[first : first + step], left[first : first + step]
            delta, product = np.zeros_like(part), np.empty_like(part)
            for k in range(left.shape[1]):
                np.multiply(factors[:, k : k + 1], right[k], out=product)
                delta += product
            delta *= np.float32(scale)
            part += delta


def _floats(view: View, reader: RowReader, rows: RowNumbers, columns: slice, n_cols: int) -> Floats:
    raw = np.empty((len(rows), n_cols * ITEM_BYTES[view.dtype]), np.uint8)
    view.read(reader, rows, columns, raw)
    values = np.empty((len(rows), n_cols), np.float32)
    reader.decode(view.dtype, raw, values)
    return values


def _round(values: Floats, dtype: str, out: Tile) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # Inf is refused later, with the tensor's name
        np.copyto(out.view(_NUMPY[dtype]), values, casting="same_kind")


def merge_adapter(checkpoint: Checkpoint, folder: Path, base: str) -> Checkpoint:
    """Return *checkpoint* with the adapter in *folder* merged into its tensors; nothing but headers is read.

    *base* is what the checkpoint is called, to compare with what the adapter was trained on.

    Raises:
        InputError: if *folder* holds no adapter.
        UnsupportedError: if the adapter is of a kind that is not merged here.
        FormatError: if it does not fit the checkpoint.
    """
    adapter = read_adapter(folder)
    tensors = dict(checkpoint.tensors)
    for own, new in adapter.replaced.items():
        name = _find(own, tensors, adapter)
        tensors[name] = _replaced(tensors[name], new)
    changed = set()
    for module, change in adapter.changes.items():
        name = _find(f"{module}.weight", tensors, adapter)
        tensors[name] = _merged(tensors[name], change)
        changed.add(name)
    replaced = {name for name, tensor in tensors.items() if tensor is not checkpoint.tensors[name]} - changed
    return replace(
        checkpoint,
        tensors=MappingProxyType(tensors),
        adapted=frozenset(changed | replaced),
        notes=(*checkpoint.notes, *_notes(checkpoint, adapter, base, len(changed), len(replaced))),
    )


def _find(name: str, tensors: Mapping[str, SourceTensor], adapter: Adapter) -> str:
    """Find a tensor of the model in the checkpoint, which may lack the name of the class's inner model ("model.")."""
    inner = name.partition(".")[2]
    for candidate in (name, inner):
        if candidate in tensors:
            return candidate
    hint = "is this the base model that the adapter was trained on?"
    if name == "lm_head.weight":
        hint = "this model's head is its embedding matrix: an adapter for the head alone has no tensor to change"
    raise FormatError(
        "the adapter changes a tensor that the checkpoint does not have",
        where=adapter.path,
        expected=name,
        found=", ".join(list(tensors)[:3]) + " ...",
        hint=hint + (f" It says {adapter.base!r}" if adapter.base else ""),
    )


def _check(tensor: SourceTensor, shape: Shape, parts: tuple[SourceTensor, ...]) -> None:
    where = f"{parts[0].path}, tensor {parts[0].name}"
    if tensor.shape != shape:
        raise FormatError(
            "the adapter does not fit the checkpoint's tensor",
            where=where,
            expected=f"{tensor.shape} of {tensor.name}",
            found=shape,
            hint="is this the base model that the adapter was trained on, with the same vocabulary?",
        )
    for one in (tensor, *parts):
        if one.dtype not in _NUMPY:
            raise UnsupportedError(
                "an adapter cannot be merged in this type",
                where=f"{one.path}, tensor {one.name}",
                expected=" or ".join(_NUMPY),
                found=one.dtype,
                hint="take the base model in its original precision",
            )


def _replaced(tensor: SourceTensor, new: SourceTensor) -> SourceTensor:
    _check(tensor, new.shape, (new,))
    view = view_of(replace(new, name=tensor.name))
    return replace(tensor, view=view if new.dtype == tensor.dtype else Rounded(view, tensor.dtype))


def _merged(tensor: SourceTensor, change: LowRank) -> SourceTensor:
    _check(tensor, change.shape, (change.b, change.a))
    a, b = view_of(change.a), view_of(change.b)
    left, right = (Transposed(a), Transposed(b)) if change.turned else (b, a)
    return replace(tensor, view=Merged(view_of(tensor), left, right, change.scale))


def _notes(checkpoint: Checkpoint, adapter: Adapter, base: str, n_changed: int, n_replaced: int) -> list[str]:
    folder = adapter.path.parent
    more = f", {n_replaced} tensors replaced" if n_replaced else ""
    notes = [f"adapter {folder.name}: {n_changed} matrices changed{more}"]
    if adapter.base and _last(adapter.base) != _last(base):
        notes.append(f"the adapter was trained on {adapter.base}; it is merged into {base}")
    own = _chat_template(folder)
    if own is not None and own != _chat_template(checkpoint.folder):
        notes.append("the adapter's folder has a chat template of its own, which is not used: the base model's is")
    return notes


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _chat_template(folder: Path) -> object:
    jinja = folder / "chat_template.jinja"
    if has_file(jinja):
        return read_text(jinja)
    return read_optional(folder / "tokenizer_config.json").get("chat_template")
