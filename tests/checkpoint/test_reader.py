from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import TensorReader, decode_rows, open_checkpoint, read_header
from pipeline.checkpoint import reader as module
from pipeline.errors import FormatError, PipelineError, UnsupportedError
from pipeline.types import SourceTensor

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def _tensor(path: Path, values: np.ndarray, dtype: str, ahead: int = 3) -> SourceTensor:
    path.write_bytes(b"#" * ahead + values.tobytes() + b"#" * 5)
    return SourceTensor("t", dtype, values.shape, path, ahead, values.nbytes)


def _read(tensor: SourceTensor, rows: Any, count: int, n_cols: int) -> np.ndarray:
    out = np.full((count, n_cols), np.nan, np.float32)
    with TensorReader() as reader:
        _decoded(
            reader, tensor, rows, np.empty((count, n_cols * np.dtype(TYPES[tensor.dtype]).itemsize), np.uint8), out
        )
    return out


def _decoded(reader: TensorReader, tensor: SourceTensor, rows: Any, raw: np.ndarray, out: np.ndarray) -> None:
    reader.read_raw_rows(tensor, rows, raw)
    decode_rows(tensor.dtype, raw, out)


def test_real_values_equal_the_library(real: Path) -> None:
    """Every tensor of the real checkpoints has the float32 values and the raw bytes that the library reads."""
    checkpoint = open_checkpoint(real)
    rows_by_name: dict[str, Any] = {}
    for path in real.glob("*.safetensors"):
        rows_by_name |= dict(safetensors.deserialize(path.read_bytes()))
    with TensorReader() as reader:
        for name, tensor in checkpoint.tensors.items():
            data = bytes(rows_by_name[name]["data"])
            n_rows, n_cols = module.rows_and_cols(tensor)
            out = np.empty((n_rows, n_cols), np.float32)
            raw = np.empty((n_rows, tensor.n_bytes // n_rows), np.uint8)
            reader.read_raw_rows(tensor, slice(None), raw)
            assert raw.tobytes() == data
            decode_rows(tensor.dtype, raw, out)
            expected = np.frombuffer(data, TYPES[tensor.dtype]).astype(np.float32)
            assert np.array_equal(out.reshape(-1), expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_pattern(dtype: str, tmp_path: Path) -> None:
    """All 65,536 values decode exactly, subnormals, infinities and signed zeros included; NaN stays NaN."""
    bits = np.arange(65536, dtype=np.uint16)
    tensor = _tensor(tmp_path / "t", bits.reshape(256, 256).view(TYPES[dtype]), dtype)
    with np.errstate(all="ignore"):
        expected = bits.view(TYPES[dtype]).astype(np.float32)
    if dtype == "BF16":
        widened = (bits.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(
            expected.view(np.uint32)[~np.isnan(expected)], widened.view(np.uint32)[~np.isnan(expected)]
        )
    out = _read(tensor, slice(None), 256, 256).reshape(-1)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(out), nan)
    assert np.array_equal(out.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("dtype", TYPES)
def test_decode_rows(dtype: str) -> None:
    """Bytes of whole rows decode to their values; buffers that do not fit, and other types, are refused."""
    values = np.random.default_rng(0).normal(0, 1, (3, 5)).astype(TYPES[dtype])
    raw = np.frombuffer(values.tobytes(), np.uint8).reshape(3, -1)
    out = np.empty((3, 5), np.float32)
    decode_rows(dtype, raw, out)
    assert np.array_equal(out, values.astype(np.float32))
    for bad_raw, bad_out in ((raw[:2], out), (raw, out[:2]), (raw, out.T), (raw[:, ::2], out[:, :2])):
        with pytest.raises(PipelineError, match="cannot be decoded this way"):
            decode_rows(dtype, bad_raw, bad_out)
    with pytest.raises(UnsupportedError, match="the type I8 is not read as weights"):
        decode_rows("I8", raw, out)


def test_halves_across_tiles(tmp_path: Path) -> None:
    """A tile with infinities does not disturb its neighbours, and the last tile may be short."""
    values = np.random.default_rng(0).normal(0, 1, 3 * 65536 + 7).astype(np.float16)
    values[70_000], values[-1], values[0] = np.inf, -np.inf, np.nan
    tensor = _tensor(tmp_path / "t", values, "F16")
    assert np.array_equal(_read(tensor, slice(None), 1, len(values))[0], values.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@given(data=st.data())
def test_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject) -> None:
    """Slices, ranges and lists of rows, repeated or backwards, give what numpy's indexing gives."""
    n_rows, n_cols = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 5))
    values = np.random.default_rng(n_rows).normal(0, 1, (n_rows, n_cols)).astype(TYPES[dtype])
    tensor = _tensor(tmp_path_factory.getbasetemp() / "rows", values, dtype)
    ends, steps = st.integers(-2, n_rows + 2), st.sampled_from([1, 1, 2, -1, -3])
    rows = data.draw(
        st.builds(slice, ends, ends, steps)
        | st.builds(lambda a, b: range(min(a, b), max(a, b)), st.integers(0, n_rows), st.integers(0, n_rows))
        | st.lists(st.integers(0, n_rows - 1), max_size=20).map(lambda r: np.array(r, np.int64))
        | st.lists(st.integers(0, n_rows - 1), max_size=20).map(lambda r: np.array(r, np.uint8))
    )
    expected = values[np.asarray(rows) if isinstance(rows, range) else rows] if len(_list(rows, n_rows)) else values[:0]
    out = _read(tensor, rows, len(expected), n_cols)
    assert np.array_equal(out, expected.astype(np.float32))
    raw = np.empty((len(expected), values.itemsize * n_cols), np.uint8)
    with TensorReader() as reader:
        reader.read_raw_rows(tensor, rows, raw)
    assert raw.tobytes() == expected.tobytes()


def _list(rows: Any, n_rows: int) -> Any:
    return range(n_rows)[rows] if isinstance(rows, slice) else rows


def test_more_rows_than_one_call_scatters(tmp_path: Path) -> None:
    """A permutation of some thousand rows is read right over several calls."""
    values = np.arange(5000 * 3, dtype=np.float32).reshape(5000, 3)
    tensor = _tensor(tmp_path / "t", values, "F32")
    rows = np.random.default_rng(0).permutation(5000)
    assert np.array_equal(_read(tensor, rows, 5000, 3), values[rows])


@pytest.mark.parametrize("shape", [(), (6,), (1, 6), (2, 3), (2, 1, 3), (0, 4), (4, 0)])
def test_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Leading dimensions are rows; one dimension or none is one row; empty tensors read as such."""
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    tensor = _tensor(tmp_path / "t", values, "F32")
    n_rows, n_cols = module.rows_and_cols(tensor)
    assert (n_rows, n_cols) == ((1, values.size) if len(shape) < 2 else (int(np.prod(shape[:-1])), shape[-1]))
    assert np.array_equal(_read(tensor, slice(None), n_rows, n_cols).reshape(shape), values)


def test_read_bytes(tmp_path: Path) -> None:
    """Spans come exactly, into arrays and memory views, and not one byte outside the tensor."""
    tensor = _tensor(tmp_path / "t", np.arange(100, dtype=np.uint8), "U8")
    with TensorReader() as reader:
        out = np.zeros(10, np.uint8)
        reader.read_bytes(tensor, 90, out)
        assert out.tolist() == list(range(90, 100))
        buffer = bytearray(4)
        reader.read_bytes(tensor, 0, memoryview(buffer)[1:3])
        assert buffer == b"\0\0\1\0"
        reader.read_bytes(tensor, 100, np.empty(0, np.uint8))
        for start in (-1, 91):
            with pytest.raises(PipelineError, match="cannot be read this way"):
                reader.read_bytes(tensor, start, out)


@pytest.mark.parametrize("dtype", ["F64", "I64", "U8", "F8_E4M3", "BOOL"])
def test_other_types_are_not_weights(dtype: str, tmp_path: Path) -> None:
    """The bytes of a type without a decoder can be read; decoding names the type and the way out."""
    tensor = _tensor(tmp_path / "t", np.arange(16, dtype=np.uint8).reshape(1, 16), dtype)
    raw = np.empty((1, 16), np.uint8)
    with TensorReader() as reader:
        reader.read_raw_rows(tensor, slice(None), raw)
    assert raw[0].tolist() == list(range(16))
    with pytest.raises(UnsupportedError) as caught:
        decode_rows(dtype, raw, np.empty((1, 16), np.float32))
    for part in (dtype, "F32 or BF16 or F16", "hint"):
        assert part in str(caught.value)


def test_file_cut_after_opening(tmp_path: Path) -> None:
    """A file that shrinks under the reader, or goes, is an error of ours, never short data."""
    tensor = _tensor(tmp_path / "t", np.ones((8, 4), np.float32), "F32")
    with TensorReader() as reader:
        out = np.empty((8, 16), np.uint8)
        reader.read_raw_rows(tensor, range(8), out)
        os.truncate(tensor.path, 100)
        with pytest.raises(FormatError) as caught:
            reader.read_raw_rows(tensor, range(8), out)
        assert (caught.value.expected, caught.value.found) == ("131 bytes", "100 bytes")
    tensor.path.unlink()
    with TensorReader() as reader, pytest.raises(FormatError, match=r"(?s)cannot be opened.*No such file"):
        reader.read_bytes(tensor, 0, np.empty(1, np.uint8))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """What the system refuses to read is an error of ours."""
    tensor = SourceTensor("t", "U8", (1,), tmp_path, 0, 1)
    with TensorReader() as reader, pytest.raises(FormatError, match="cannot be read"):
        reader.read_bytes(tensor, 0, np.empty(1, np.uint8))


MISUSES: dict[str, Callable[[TensorReader, SourceTensor], None]] = {
    "row too high": lambda r, t: r.read_raw_rows(t, np.array([8]), np.empty((1, 16), np.uint8)),
    "row negative": lambda r, t: r.read_raw_rows(t, np.array([-1]), np.empty((1, 16), np.uint8)),
    "range too long": lambda r, t: r.read_raw_rows(t, range(7, 9), np.empty((2, 16), np.uint8)),
    "float rows": lambda r, t: r.read_raw_rows(t, np.array([1.0]), np.empty((1, 16), np.uint8)),
    "table of rows": lambda r, t: r.read_raw_rows(t, np.array([[1]]), np.empty((1, 16), np.uint8)),
    "few raw rows": lambda r, t: r.read_raw_rows(t, range(8), np.empty((7, 16), np.uint8)),
    "short raw rows": lambda r, t: r.read_raw_rows(t, range(8), np.empty((8, 8), np.uint8)),
    "raw type": lambda r, t: r.read_raw_rows(t, range(8), np.empty((8, 16), np.int8)),
    "raw strided": lambda r, t: r.read_raw_rows(t, range(8), np.empty((8, 32), np.uint8)[:, ::2]),
    "closed": lambda r, t: (r.close(), r.read_bytes(t, 0, np.empty(1, np.uint8)))[1],
}


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_reads_nothing(case: str, tmp_path: Path) -> None:
    """A wrong row or buffer is refused and is not the input's fault."""
    tensor = _tensor(tmp_path / "t", np.ones((8, 4), np.float32), "F32")
    with TensorReader() as reader, pytest.raises(PipelineError) as caught:
        MISUSES[case](reader, tensor)
    assert type(caught.value) is PipelineError


def _open_files() -> int | None:
    folder = Path("/proc/self/fd")  # only Linux has it
    return len(list(folder.iterdir())) if folder.exists() else None


def test_threads_share_a_reader(demo: Path) -> None:
    """Many threads reading at once through one reader get their own rows, and each file is opened once."""
    tensor = max(open_checkpoint(demo).tensors.values(), key=lambda t: t.n_bytes)
    n_rows, n_cols = module.rows_and_cols(tensor)
    whole = _read(tensor, slice(None), n_rows, n_cols)
    before = _open_files()
    wrong: list[int] = []
    with TensorReader() as reader:

        def work(seed: int) -> None:
            raw, out = np.empty((16, 2 * n_cols), np.uint8), np.empty((16, n_cols), np.float32)
            for i in range(50):
                rows = np.random.default_rng((seed, i)).integers(0, n_rows, 16)
                _decoded(reader, tensor, rows, raw, out)
                if not np.array_equal(out, whole[rows]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert before is None or _open_files() == before + 1
    assert wrong == []


def test_reading_allocates_no_tile(demo: Path) -> None:
    """Decoding goes through the caller's buffers alone: nothing near a tile's size is allocated."""
    import tracemalloc

    tensor = max(read_header(demo / "model.safetensors").tensors.values(), key=lambda t: t.n_bytes)
    n_rows, n_cols = module.rows_and_cols(tensor)
    raw, out = np.empty((n_rows, 2 * n_cols), np.uint8), np.empty((n_rows, n_cols), np.float32)
    rows = np.arange(n_rows)[::-1]
    with TensorReader() as reader:
        _decoded(reader, tensor, rows, raw, out)
        tracemalloc.start()
        _decoded(reader, tensor, rows, raw, out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert out.nbytes > 1_000_000
    assert peak < out.nbytes / 2


def test_files_are_waited_for_once(demo: Path) -> None:
    """Before a file is opened the reader asks whether it is ready, and not again while it is open."""
    tensors = read_header(demo / "model.safetensors").tensors
    asked: list[Path] = []
    with TensorReader(ready=asked.append) as reader:
        for tensor in list(tensors.values())[:3]:
            reader.read_bytes(tensor, 0, np.empty(tensor.n_bytes, np.uint8))
    assert asked == [demo / "model.safetensors"]


def test_file_that_never_comes(demo: Path) -> None:
    """The error of the wait is the error of the read, and the file is not opened."""

    def ready(path: Path) -> None:
        raise PipelineError("does not come", where=path)

    tensor = next(iter(read_header(demo / "model.safetensors").tensors.values()))
    with TensorReader(ready=ready) as reader, pytest.raises(PipelineError, match="does not come"):
        reader.read_bytes(tensor, 0, np.empty(tensor.n_bytes, np.uint8))


def test_waiting_holds_up_nobody_else(real: Path, tmp_path: Path) -> None:
    """While one thread waits for a file, another reads one that is there, and the reader can be closed."""
    for name in ("here", "late"):
        shutil.copy(next(real.glob("*.safetensors")), tmp_path / name)
    here, late = (next(iter(read_header(tmp_path / name).tensors.values())) for name in ("here", "late"))
    is_waiting, may_go_on = threading.Event(), threading.Event()
    errors: list[str] = []

    def ready(path: Path) -> None:
        if path.name == "late":
            is_waiting.set()
            assert may_go_on.wait(30)

    def read_late() -> None:
        try:
            reader.read_bytes(late, 0, np.empty(late.n_bytes, np.uint8))
        except PipelineError as error:
            errors.append(str(error))

    reader = TensorReader(ready=ready)
    thread = threading.Thread(target=read_late)
    thread.start()
    assert is_waiting.wait(30)
    reader.read_bytes(here, 0, np.empty(here.n_bytes, np.uint8))
    reader.close()
    may_go_on.set()
    thread.join()
    assert "a closed reader" in errors[0]
