"""Writing planned files: whole, in order, hashed, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.errors import AccessError, FormatError, ResourceError
from pipeline.gguf import GgufWriter, read_gguf
from pipeline.types import Blob, Plan, PlannedTensor

TensorData = Callable[[PlannedTensor], bytes]


def _write(path: Path, plan: Plan, data: TensorData, step: int = 1 << 20) -> Blob:
    with GgufWriter(path, plan) as out:
        for tensor in plan.tensors:
            out.begin(tensor)
            content = data(tensor)
            for start in range(0, len(content), step):
                out.write(content[start : start + step])
            out.end()
        return out.commit()


@pytest.mark.parametrize("step", [1 << 20, 7])
def test_the_file_holds_what_was_written(tmp_path: Path, rich_plan: Plan, tensor_data: TensorData, step: int) -> None:
    """Every tensor lies at its planned place, gaps are zeros, and the digest is that of the file."""
    path = tmp_path / "out.gguf"
    blob = _write(path, rich_plan, tensor_data, step)
    content = path.read_bytes()
    assert blob == Blob("sha256:" + hashlib.sha256(content).hexdigest(), rich_plan.file_bytes)
    rest = bytearray(content[rich_plan.data_start :])
    for tensor in rich_plan.tensors:
        stop = tensor.offset + tensor.n_bytes
        assert rest[tensor.offset : stop] == tensor_data(tensor)
        rest[tensor.offset : stop] = bytes(tensor.n_bytes)
    assert not any(rest)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.native
def test_the_file_is_libggmls(
    libgguf: Any, tmp_path: Path, rich_plan: Plan, tensor_data: TensorData, entries: Any
) -> None:
    """The whole file, last padding included, is the one libggml writes."""
    _write(tmp_path / "ours.gguf", rich_plan, tensor_data)
    libgguf.write(
        tmp_path / "theirs.gguf", rich_plan.metadata, entries(rich_plan), [tensor_data(t) for t in rich_plan.tensors]
    )
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_arrays_are_written_as_their_bytes(tmp_path: Path, make_plan: Any) -> None:
    """Arrays of any dtype and number of dimensions count as bytes, bfloat16 too."""
    plan = make_plan((), [("a", "F32", (2, 3)), ("b", "BF16", (4,))])
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, ml_dtypes.bfloat16)
    with GgufWriter(tmp_path / "f.gguf", plan) as out:
        for tensor, content in zip(plan.tensors, (a, b), strict=True):
            out.begin(tensor)
            out.write(content[:1])
            out.write(content[1:])
            out.end()
        out.commit()
    data = (tmp_path / "f.gguf").read_bytes()[plan.data_start :]
    assert data[:24] == a.tobytes()
    assert data[32:40] == b.tobytes()


def test_an_array_must_be_contiguous(tmp_path: Path, make_plan: Any) -> None:
    """A transposed view would be written in another order than it is seen: refused."""
    plan = make_plan((), [("a", "F32", (2, 3))])
    with GgufWriter(tmp_path / "f.gguf", plan) as out:
        out.begin(plan.tensors[0])
        with pytest.raises(FormatError, match="contiguous"):
            out.write(np.zeros((3, 2), np.float32).T)


def test_a_failure_leaves_nothing(tmp_path: Path, rich_plan: Plan) -> None:
    """An error inside the context removes the temporary file and keeps the file that was there before."""
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), GgufWriter(path, rich_plan) as out:
        out.begin(rich_plan.tensors[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_nothing_shows_before_commit(tmp_path: Path, rich_plan: Plan, tensor_data: TensorData) -> None:
    """Until commit there is only a hidden file of the final size; leaving without commit removes it."""
    with GgufWriter(tmp_path / "out.gguf", rich_plan) as out:
        for tensor in rich_plan.tensors:
            out.begin(tensor)
            out.write(tensor_data(tensor))
            out.end()
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".")
        assert hidden.stat().st_size == rich_plan.file_bytes
    assert not list(tmp_path.iterdir())


def test_the_mode_follows_the_umask(tmp_path: Path, make_plan: Any) -> None:
    """The file has the permissions of any new file, not those of a private temporary one."""
    with GgufWriter(tmp_path / "out.gguf", make_plan()) as out:
        out.commit()
    (tmp_path / "other").touch()
    assert (tmp_path / "out.gguf").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path, make_plan: Any) -> None:
    """Each writer has its own temporary file; the last commit stays."""
    plan = make_plan((), [("a", "F32", (1,))])
    with GgufWriter(tmp_path / "f.gguf", plan) as one, GgufWriter(tmp_path / "f.gguf", plan) as two:
        for out, content in ((one, b"1111"), (two, b"2222")):
            out.begin(plan.tensors[0])
            out.write(content)
            out.end()
        two.commit()
        one.commit()
    assert (tmp_path / "f.gguf").read_bytes()[plan.data_start :][:4] == b"1111"


def _skip_first(out: GgufWriter, plan: Plan) -> None:
    out.begin(plan.tensors[1])


def _unplanned(out: GgufWriter, plan: Plan) -> None:
    out.begin(replace(plan.tensors[0], name="other"))


def _too_much(out: GgufWriter, plan: Plan) -> None:
    out.begin(plan.tensors[0])
    out.write(bytes(plan.tensors[0].n_bytes - 1))
    out.write(b"ab")


def _too_little(out: GgufWriter, plan: Plan) -> None:
    out.begin(plan.tensors[0])
    out.write(bytes(plan.tensors[0].n_bytes - 1))
    out.end()


def _no_tensor(out: GgufWriter, plan: Plan) -> None:
    out.write(b"a")


def _begin_twice(out: GgufWriter, plan: Plan) -> None:
    out.begin(plan.tensors[0])
    out.begin(plan.tensors[1])


def _end_nothing(out: GgufWriter, plan: Plan) -> None:
    out.end()


def _commit_early(out: GgufWriter, plan: Plan) -> None:
    out.commit()


@pytest.mark.parametrize(
    "act", [_skip_first, _unplanned, _too_much, _too_little, _no_tensor, _begin_twice, _end_nothing, _commit_early]
)
def test_leaving_the_plan_is_an_error(tmp_path: Path, rich_plan: Plan, act: Callable[[GgufWriter, Plan], None]) -> None:
    """Whatever is not the next planned byte is refused, and no file appears."""
    with pytest.raises(FormatError), GgufWriter(tmp_path / "out.gguf", rich_plan) as out:
        act(out, rich_plan)
    assert not list(tmp_path.iterdir())


def test_a_committed_writer_is_closed(tmp_path: Path, make_plan: Any) -> None:
    """A second commit is an error, not a second file."""
    with GgufWriter(tmp_path / "f.gguf", make_plan()) as out:
        out.commit()
        with pytest.raises(FormatError, match="closed"):
            out.commit()


@pytest.mark.parametrize("change", [{"data_start": 64}, {"file_bytes": 10**6}])
def test_a_plan_that_contradicts_itself_is_refused(tmp_path: Path, rich_plan: Plan, change: dict[str, int]) -> None:
    """Sizes that do not follow from header and tensors are found before a file is made."""
    with pytest.raises(FormatError), GgufWriter(tmp_path / "out.gguf", replace(rich_plan, **change)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_wrong_tensor_size_is_refused(tmp_path: Path, rich_plan: Plan) -> None:
    """A planned size that type and shape do not give is found before a file is made."""
    first, *rest = rich_plan.tensors
    plan = replace(rich_plan, tensors=(replace(first, n_bytes=first.n_bytes - 1), *rest))
    with pytest.raises(FormatError, match=first.name), GgufWriter(tmp_path / "out.gguf", plan):
        pass


def test_a_file_larger_than_the_disk_fails_at_once(tmp_path: Path, make_plan: Any) -> None:
    """Too little space is an error before any work, with the bytes needed and the bytes free."""
    plan = make_plan((), [("a", "F32", (2**28, 2**28))])
    with pytest.raises(ResourceError, match=str(plan.file_bytes)), GgufWriter(tmp_path / "out.gguf", plan):
        pass
    assert not list(tmp_path.iterdir())


def _descriptor(path: Path) -> int:
    (fd,) = (int(link.name) for link in Path("/proc/self/fd").iterdir() if link.resolve() == path)
    return fd


def test_syncing_early_changes_nothing(
    tmp_path: Path, rich_plan: Plan, tensor_data: TensorData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that goes to the disk while it is written has the same bytes."""
    whole, early = tmp_path / "whole", tmp_path / "early"
    blob = _write(whole, rich_plan, tensor_data)
    monkeypatch.setattr("pipeline.gguf.writer._SYNC_EVERY", 1)
    assert _write(early, rich_plan, tensor_data, 64) == blob
    assert early.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")
def test_a_sync_that_failed_is_told(tmp_path: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk refused while work went on is an error at the latest in commit, though it is well again by then."""
    monkeypatch.setattr("pipeline.gguf.writer._SYNC_EVERY", 1 << 12)
    plan = make_plan(tensors=[("t", "F32", (1 << 10,))])
    with GgufWriter(tmp_path / "o", plan) as out:
        fd = _descriptor(next(tmp_path.iterdir()))
        well, (tap, pipe) = os.dup(fd), os.pipe()
        os.dup2(pipe, fd)  # a pipe can be written but not synced
        out.begin(plan.tensors[0])
        out.write(bytes(1 << 12))
        out._syncer.submit(int).result()  # the one before is over
        os.dup2(well, fd)
        out.end()
        with pytest.raises(AccessError, match=os.strerror(errno.EINVAL)):
            out.commit()
        for one in (well, tap, pipe):
            os.close(one)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc and /dev/full")
def test_a_disk_that_fills_up_is_a_resource_error(tmp_path: Path, rich_plan: Plan) -> None:
    """When the kernel says that the device is full, the error says so and the temporary file goes."""
    with GgufWriter(tmp_path / "o", rich_plan) as out:
        (hidden,) = tmp_path.iterdir()
        fd = _descriptor(hidden)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, fd)
        os.close(full)
        out.begin(rich_plan.tensors[0])
        with pytest.raises(ResourceError, match=os.strerror(errno.ENOSPC)):
            out.write(bytes(8))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_access_error(tmp_path: Path, rich_plan: Plan) -> None:
    """A place that does not exist is named in the error."""
    path = tmp_path / "no" / "out.gguf"
    with pytest.raises(AccessError, match=r"out\.gguf"), GgufWriter(path, rich_plan):
        pass


def test_what_is_written_can_be_read(tmp_path: Path, rich_plan: Plan, tensor_data: TensorData) -> None:
    """Our reader gives back every key, every tensor and every byte."""
    _write(tmp_path / "out.gguf", rich_plan, tensor_data)
    file = read_gguf(tmp_path / "out.gguf")
    assert tuple(file.metadata.values()) == rich_plan.metadata
    for planned, tensor in zip(rich_plan.tensors, file.tensors, strict=True):
        out = bytearray(tensor.n_bytes)
        file.read_tensor_bytes(tensor, 0, out)
        assert (tensor.name, tensor.type, bytes(out)) == (planned.name, planned.type, tensor_data(planned))
