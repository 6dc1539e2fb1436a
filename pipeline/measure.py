"""How far encoded weights are from the ones they were made of: sums over rows, and what they mean.

Many rows are measured where they are encoded; a few are copied and wait until there are enough for one pass, since a
pass costs more than its rows.  Sums are float64 and are added in the order of the rows, so the figures do not depend on
the number of threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike

from pipeline import quant
from pipeline.types import Plan, PlannedTensor

# Measuring every row costs 6 to 10 ns a weight, more than all else of Q8_0; one row of 32 costs 0.2 to 0.4.
SAMPLE = 32

LEVELS = {"none": 0, "sample": SAMPLE, "all": 1}

_CHUNK = 1 << 15  # weights decoded at once: what is made of them stays in the cache of a core
_ENOUGH = 1 << 17  # sampled weights that are measured in one pass
_DIGITS = 7
_SMALL = 1 << 16


@dataclass(frozen=True)
class Sums:
    """What passes over rows add up: x are the source's values, y those that the encoded bytes stand for."""

    n_rows: int = 0
    n: int = 0
    pairs: quant.Compared = field(default_factory=quant.Compared)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n_rows + other.n_rows, self.n + other.n, self.pairs.joined(other.pairs))


Decode = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Sample:
    """Rows of a tensor that wait to be measured, copies.

    *raw* are as they were read, uint8 (n_rows, n_bytes); *decode* turns such rows into float32 (n_rows, n_cols).
    """

    raw: np.ndarray
    encoded: np.ndarray
    decode: Decode
    n_cols: int

    @property
    def n(self) -> int:
        """The number of weights."""
        return len(self.raw) * self.n_cols


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor over *n_rows* measured rows.

    *rmse* and *max_abs* are in the weights' own unit; *relative* is the RMSE over the root mean square of the source's
    values; *cosine* is that of the angle between source and encoded values.  *relative* and *cosine* are None where a
    side is all zeros and the other is not.  A tensor whose values are kept as they are has no error: all its rows count
    as measured.
    """

    n_rows: int
    rmse: float
    max_abs: float
    relative: float | None
    cosine: float | None


EXACT = TensorError(0, 0.0, 0.0, 0.0, 1.0)


def keeps_values(dtype: str, kind: str) -> bool:
    """Say whether values of *dtype* (BF16, F16, F32, or a block type) are the same in a tensor of type *kind*."""
    return kind in (dtype, "F32")


def sampled_rows(first: int, stop: int, every: int) -> np.ndarray:
    """Choose rows from *first* to *stop*: one of each group of *every* rows of the tensor, which one varies by group.

    A regular step would always meet the same place in each attention head.  Row 0 is always chosen.
    """
    groups = np.arange(first // every, -(-stop // every), dtype=np.int64)
    rows = groups * every + (groups * 2654435761 >> 11) % every  # Knuth's multiplicative hash
    return rows[(first <= rows) & (rows < stop)]


@lru_cache(1024)
def _sample(first: int, stop: int, every: int) -> np.ndarray:
    """Give the sampled rows by their numbers in the tile; tensors of one height share them."""
    return sampled_rows(first, stop, every) - first


class _Buffers(threading.local):
    """Scratch of one thread; fresh arrays of this size would cost more in page faults than the sums do."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an array of this thread's own; its contents are undefined."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._arrays or self._arrays[name].nbytes < size:
            self._arrays[name] = np.empty(size, np.uint8)
        return self._arrays[name][:size].view(dtype).reshape(shape)


_buffers = _Buffers()


def measure_rows(
    kind: quant.BlockType, values: np.ndarray, encoded: np.ndarray, engine: quant.Engine | None = None
) -> Sums:
    """Compare the rows of two arrays.

    Args:
        kind: the type of what is encoded.
        values: the source's, float32 (n_rows, n_cols), C-contiguous.
        encoded: uint8 (n_rows, row_bytes), C-contiguous.
        engine: what decodes and adds up, NumPy by default.
    """
    engine = engine or quant.NumpyEngine()
    decode = engine.decoder(kind) or kind.dequantize_rows
    step = max(1, _CHUNK // values.shape[1])
    sums = Sums()
    for start in range(0, len(values), step):
        x = values[start : start + step]
        y = _buffers.get("y", x.shape, np.float32)
        decode(encoded[start : start + step], y)
        sums += Sums(len(x), x.size, engine.compare(x.reshape(-1), y.reshape(-1)))
    return sums


def error_of(sums: Sums) -> TensorError:
    """Turn *sums* into figures of seven digits."""
    n, pairs = max(sums.n, 1), sums.pairs
    return TensorError(
        sums.n_rows,
        _rounded(math.sqrt(pairs.square / n)),
        _rounded(pairs.largest),
        _ratio(math.sqrt(pairs.square), math.sqrt(pairs.xx), 0.0),
        _ratio(pairs.xy, math.sqrt(pairs.xx) * math.sqrt(pairs.yy), 1.0 if pairs.xx == pairs.yy == 0 else None),
    )


def _ratio(a: float, b: float, of_zeros: float | None) -> float | None:
    if b == 0:
        return of_zeros if a == 0 else None
    return _rounded(a / b)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _measure(tensor: PlannedTensor, samples: Sequence[Sample], engine: quant.Engine) -> Sums:
    raw = np.concatenate([sample.raw for sample in samples])
    encoded = np.concatenate([sample.encoded for sample in samples])
    values = _buffers.get("x", (len(raw), tensor.n_cols), np.float32)
    samples[0].decode(raw, values)
    return measure_rows(quant.get(tensor.type), values, encoded, engine)


class ErrorMeter:
    """Gathers the errors of all tensors of some outputs: one row of *every* is measured; 1 measures all.

    Tensors of up to 65,536 weights are measured whole in any case.  `look` may be called from any thread; `add` must be
    called in the order of the rows.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.engine: quant.Engine = quant.NumpyEngine()  # what adds up; `encode` puts its own here
        self._sums: dict[tuple[str, str], Sums] = {}
        self._waiting: dict[str, tuple[PlannedTensor, list[Sample]]] = {}  # by recipe

    def look(
        self, tensor: PlannedTensor, raw: np.ndarray, decode: Decode, encoded: np.ndarray, first: int
    ) -> Sums | Sample:
        """Measure the sampled rows of a tile whose first row is row *first* of *tensor*, or keep them if they are few.

        What comes back is for `add`.

        Args:
            tensor: as it is planned.
            raw: the tile as it was read, uint8 (n_rows, n_bytes).
            decode: turns such rows into float32 (n_rows, n_cols).
            encoded: the tile's bytes, uint8 (n_rows, row_bytes).
            first: where the tile begins.
        """
        every = self.every if tensor.n_rows * tensor.n_cols > _SMALL else 1
        rows = _sample(first, first + len(encoded), every)
        sample = Sample(raw[rows], encoded[rows], decode, tensor.n_cols)
        return sample if sample.n < _CHUNK else _measure(tensor, [sample], self.engine)

    def add(self, recipe: str, tensor: PlannedTensor, found: Sums | Sample) -> None:
        """Count what `look` has *found* to *tensor* of the file of *recipe*."""
        before = self._waiting.get(recipe)
        if before and (before[0] is not tensor or isinstance(found, Sums)):
            self._measure_waiting(recipe)
        if isinstance(found, Sums):
            self._count(recipe, tensor, found)
            return
        _, samples = self._waiting.setdefault(recipe, (tensor, []))
        samples.append(found)
        if sum(sample.n for sample in samples) >= _ENOUGH:
            self._measure_waiting(recipe)

    def errors(self, plan: Plan) -> tuple[TensorError, ...]:
        """Return the error of each tensor of *plan*, in its order."""
        if plan.recipe in self._waiting:
            self._measure_waiting(plan.recipe)
        return tuple(self._error(plan.recipe, tensor) for tensor in plan.tensors)

    def _measure_waiting(self, recipe: str) -> None:
        tensor, samples = self._waiting.pop(recipe)
        self._count(recipe, tensor, _measure(tensor, samples, self.engine))

    def _count(self, recipe: str, tensor: PlannedTensor, sums: Sums) -> None:
        at = (recipe, tensor.name)
        self._sums[at] = self._sums.get(at, Sums()) + sums

    def _error(self, recipe: str, tensor: PlannedTensor) -> TensorError:
        if tensor.view is not None and keeps_values(tensor.view.dtype, tensor.type):
            return replace(EXACT, n_rows=tensor.n_rows)
        return error_of(self._sums.get((recipe, tensor.name), Sums()))
