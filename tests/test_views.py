"""Views against NumPy: any rows, any columns, of any expression, are what NumPy's own indexing gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import quant, views
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.errors import FormatError
from pipeline.types import View


@dataclass(frozen=True)
class _Reversed:
    n_rows: int

    def __call__(self, rows: views.RowNumbers) -> views.RowNumbers:
        return np.asarray(self.n_rows - 1 - rows)


VALUES = {
    "matrix": np.arange(12 * 10, dtype=np.float32).reshape(12, 10),
    "other": np.arange(5 * 10, dtype=np.float32).reshape(5, 10) - 100,
    "cube": np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6) / 7,
    "vector": np.arange(9, dtype=np.float32) * -1.5,
    "single": np.arange(4 * 7, dtype=np.float32).reshape(4, 1, 7),
}


# Two blocks in a row, (3, 2) rows, as gpt-oss is published.
RANDOM = np.random.default_rng(4)
PACKED = {
    "blocks": RANDOM.integers(0, 256, (3, 2, 32), np.uint8),
    "scales": RANDOM.integers(100, 140, (3, 2, 2), np.uint8),
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, views.Stored]:
    """Each of VALUES and PACKED as a source tensor in a safetensors file."""
    folder = tmp_path_factory.mktemp("views")
    header, data = {}, b""
    for name, values in {**VALUES, **PACKED}.items():
        header[name] = {
            "dtype": "U8" if name in PACKED else "F32",
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + values.nbytes],
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    return {name: views.Stored(tensor) for name, tensor in open_checkpoint(folder).tensors.items()}


def _plus_two(tile: np.ndarray) -> None:
    tile += 2


Case = tuple[Callable[[dict[str, views.Stored]], View], Callable[[dict[str, np.ndarray]], np.ndarray]]

CASES: dict[str, Case] = {
    "stored": (lambda s: s["matrix"], lambda v: v["matrix"]),
    "rows": (lambda s: views.Rows(s["matrix"], (12, 10), _Reversed(12)), lambda v: v["matrix"][::-1]),
    "fewer rows": (lambda s: views.Rows(s["matrix"], (4, 10), _Reversed(4)), lambda v: v["matrix"][3::-1]),
    "elements": (lambda s: views.Rows(s["vector"], (9,), _Reversed(9)), lambda v: v["vector"][::-1]),
    "joined": (
        lambda s: views.Joined((s["matrix"], s["other"]), (17, 10)),
        lambda v: np.concatenate([v["matrix"], v["other"]]),
    ),
    "stacked": (
        lambda s: views.Joined((s["matrix"], s["matrix"]), (2, 12, 10)),
        lambda v: np.stack([v["matrix"], v["matrix"]]),
    ),
    "joined vectors": (
        lambda s: views.Joined((s["vector"], s["vector"]), (18,)),
        lambda v: np.concatenate([v["vector"], v["vector"]]),
    ),
    "transposed": (lambda s: views.Transposed(s["matrix"]), lambda v: v["matrix"].T),
    "transposed cube": (lambda s: views.Transposed(s["cube"]), lambda v: v["cube"].swapaxes(1, 2)),
    "transposed twice": (lambda s: views.Transposed(views.Transposed(s["cube"])), lambda v: v["cube"]),
    "transposed rows": (
        lambda s: views.Transposed(views.Rows(s["matrix"], (4, 10), _Reversed(4))),
        lambda v: v["matrix"][3::-1].T,
    ),
    "squeezed": (lambda s: views.Shaped(s["single"], (4, 7)), lambda v: v["single"][:, 0]),
    "folded": (lambda s: views.Folded(s["vector"], (3, 3)), lambda v: v["vector"].reshape(3, 3)),
    "column": (lambda s: views.Folded(s["vector"], (9, 1)), lambda v: v["vector"][:, None]),
    "computed": (lambda s: views.Computed(views.Transposed(s["matrix"]), _plus_two), lambda v: v["matrix"].T + 2),
    "constant": (lambda _: views.Constant((2, 3), (1, 2, 3, 4, 5, 6)), lambda _: np.arange(1, 7).reshape(2, 3)),
}


@pytest.mark.parametrize("case", CASES)
@given(draw=st.data())
def test_reads_what_numpy_indexes(case: str, stored: dict[str, views.Stored], draw: st.DataObject) -> None:
    """Rows in any order and any band of columns have NumPy's values."""
    view = CASES[case][0](stored)
    expected = np.asarray(CASES[case][1](VALUES), np.float32)
    assert view.shape == expected.shape
    table = expected.reshape(views.count_rows(expected.shape), -1)
    rows = draw.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=20))
    first = draw.draw(st.integers(0, table.shape[1] - 1))
    stop = draw.draw(st.integers(first + 1, table.shape[1]))
    out = np.empty((len(rows), (stop - first) * 4), np.uint8)
    with TensorReader() as reader:
        view.read(reader, np.array(rows, np.int64), slice(first, stop), out)
    assert np.array_equal(table[rows, first:stop], out.view(np.float32))


@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_mxfp4_has_the_values_of_its_parts(stored: dict[str, views.Stored], rows: list[int]) -> None:
    """Low and high nibbles alternate in the source; repacked, ggml's own reading gives the same values."""
    low, high = E2M1[PACKED["blocks"] & 15], E2M1[PACKED["blocks"] >> 4]
    values = np.stack([low, high], -1).reshape(3, 2, 2, 32) * 2.0 ** (PACKED["scales"][..., None] - 127.0)
    view = views.Mxfp4(stored["blocks"].tensor, stored["scales"].tensor)
    assert (view.shape, view.dtype) == ((3, 2, 64), "MXFP4")
    kind = quant.get("MXFP4")
    out, found = np.empty((len(rows), kind.row_bytes(64)), np.uint8), np.empty((len(rows), 64), np.float32)
    with TensorReader() as reader:
        view.read(reader, np.array(rows, np.int64), slice(None), out)
    kind.dequantize_rows(out, found)
    assert np.array_equal(values.reshape(6, 64)[rows].astype(np.float32), found)


def test_mxfp4_needs_parts_that_fit(stored: dict[str, views.Stored]) -> None:
    """Other types and shapes are refused, and so are columns out of a block."""
    with pytest.raises(FormatError, match="do not fit"):
        views.Mxfp4(stored["scales"].tensor, stored["blocks"].tensor)
    with pytest.raises(FormatError, match="do not fit"):
        views.Mxfp4(stored["matrix"].tensor, stored["scales"].tensor)
    view = views.Mxfp4(stored["blocks"].tensor, stored["scales"].tensor)
    with TensorReader() as reader, pytest.raises(FormatError, match="cannot be cut"):
        view.read(reader, np.array([0]), slice(0, 32), np.empty((1, 17), np.uint8))


def test_parts_must_fit(stored: dict[str, views.Stored]) -> None:
    """Tensors with rows of different lengths are not joined."""
    with pytest.raises(FormatError, match="belong together"):
        views.Joined((stored["matrix"], stored["cube"]), (24, 10))


def test_a_shape_must_keep_the_rows(stored: dict[str, views.Stored]) -> None:
    """A view in another shape has the same rows."""
    with pytest.raises(FormatError, match="another shape"):
        views.Shaped(stored["matrix"], (10, 12))


def test_a_fold_must_keep_the_length(stored: dict[str, views.Stored]) -> None:
    """Only a vector folds, and only into as many elements."""
    with pytest.raises(FormatError, match="another length"):
        views.Folded(stored["vector"], (2, 4))
    with pytest.raises(FormatError, match="another length"):
        views.Folded(stored["matrix"], (10, 12))


def test_views_name_their_sources(stored: dict[str, views.Stored], tmp_path: Path) -> None:
    """Every expression tells which tensors it reads."""
    view = views.Computed(views.Joined((stored["matrix"], stored["other"]), (17, 10)), _plus_two)
    assert [source.name for source in view.sources] == ["matrix", "other"]
    assert view.dtype == "F32"
