"""The description of a file: plain JSON, short, with the right totals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.gguf import describe, encode_plan_header, read_gguf
from pipeline.types import KV, ValueType, array, string, u32


def _described(path: Path, plan: Any) -> dict[str, Any]:
    path.write_bytes(encode_plan_header(plan.metadata, plan.tensors).ljust(plan.file_bytes, b"\0"))
    return describe(read_gguf(path))


def test_totals(tmp_path: Path, make_plan: Any) -> None:
    """Parameters, bytes for each type and bits per weight follow from the tensors."""
    plan = make_plan((), [("a", "Q8_0", (2, 64)), ("b", "F32", (64,)), ("c", "F32", (64,))])
    found = _described(tmp_path / "f.gguf", plan)
    assert found["parameters"] == 256
    assert found["types"] == {
        "Q8_0": {"tensors": 1, "parameters": 128, "bytes": 136},
        "F32": {"tensors": 2, "parameters": 128, "bytes": 512},
    }
    assert found["bits_per_weight"] == 20.25
    assert found["tensors"][0] == {
        "name": "a",
        "shape": [2, 64],
        "type": "Q8_0",
        "offset": plan.data_start,
        "n_bytes": 136,
    }


def test_it_is_json(tmp_path: Path, make_plan: Any, rich: Any) -> None:
    """Every value type ends as strict JSON: infinities and broken UTF-8 too."""
    odd = string("odd", b"a\xff".decode("utf-8", "surrogateescape"))
    found = _described(tmp_path / "f.gguf", make_plan((*rich, odd, KV("nan", ValueType.FLOAT32, float("nan")))))
    again = json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode())
    assert again == found
    assert (found["metadata"]["odd"], found["metadata"]["nan"]) == ("a\ufffd", "nan")
    assert found["bits_per_weight"] is None


def test_long_arrays_are_shortened(tmp_path: Path, make_plan: Any) -> None:
    """An array of up to eight values is shown whole, a longer one by type, length and its first values."""
    metadata = (array("short", ValueType.INT32, range(8)), array("long", ValueType.STRING, map(str, range(9))))
    found = _described(tmp_path / "f.gguf", make_plan(metadata))["metadata"]
    assert found["short"] == list(range(8))
    assert found["long"] == {"array": "string", "length": 9, "first": [str(i) for i in range(8)]}


def test_split_parts_are_shown(tmp_path: Path, make_plan: Any) -> None:
    """A part of a split model says which part it is."""
    found = _described(tmp_path / "f.gguf", make_plan((u32("split.no", 1), u32("split.count", 2))))
    assert found["split"] == {"no": 1, "count": 2}
