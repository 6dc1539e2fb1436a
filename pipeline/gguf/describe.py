"""Describe a GGUF file as plain JSON values, for people and for `inspect --json`."""

from __future__ import annotations

from math import isfinite, prod
from typing import Any

from pipeline.gguf.reader import GgufFile, GgufTensor
from pipeline.types import KV, ValueType

_MAX_ITEMS = 8  # longer arrays show only this many


def describe(file: GgufFile) -> dict[str, Any]:
    """Describe *file*: metadata with long arrays shortened, tensors (row-major shapes), totals, bits per weight."""
    parameters = sum(_n_elements(t) for t in file.tensors)
    n_bytes = sum(t.n_bytes for t in file.tensors)
    return {
        "path": str(file.path),
        "version": file.version,
        "alignment": file.alignment,
        "file_bytes": file.file_size,
        "data_start": file.data_start,
        "split": None if file.split is None else {"no": file.split.no, "count": file.split.count},
        "metadata": {key: _value(kv) for key, kv in file.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "offset": t.offset, "n_bytes": t.n_bytes}
            for t in file.tensors
        ],
        "types": _totals(file.tensors),
        "parameters": parameters,
        "bits_per_weight": round(8 * n_bytes / parameters, 4) if parameters else None,
    }


def _n_elements(tensor: GgufTensor) -> int:
    return prod(tensor.shape)


def _totals(tensors: tuple[GgufTensor, ...]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = totals.setdefault(tensor.type, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += _n_elements(tensor)
        row["bytes"] += tensor.n_bytes
    return totals


def _value(kv: KV) -> Any:
    if kv.type is not ValueType.ARRAY or kv.item is None:
        return _plain(kv.value)
    if len(kv.value) <= _MAX_ITEMS:
        return [_plain(v) for v in kv.value]
    first = [_plain(v) for v in kv.value[:_MAX_ITEMS]]
    return {"array": kv.item.name.lower(), "length": len(kv.value), "first": first}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no such numbers
    return value
