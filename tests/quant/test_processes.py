"""NumPy's kernels in other processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import quant
from pipeline.errors import FormatError, ResourceError
from pipeline.quant._processes import Processes, processes

F32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes for all tests of this file."""
    with processes(2) as running:
        yield running


def rows(n_rows: int, n_cols: int = 512) -> F32:
    """Return normal weights."""
    return np.random.default_rng(n_rows).standard_normal((n_rows, n_cols)).astype(np.float32)


def quantized(engine: Processes | quant.Engine, name: str, x: F32, importance: F32 | None = None) -> bytes:
    """Return the blocks of *x*."""
    kind = quant.get(name)
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    if isinstance(engine, Processes):
        engine.quantize_rows(kind, x, out, importance)
    else:
        engine.quantize_rows(kind, x, out, importance)
    return out.tobytes()


def test_threads_get_the_bytes_of_their_own_rows(two: Processes) -> None:
    """Requests of any size, type and importance, more at once than there are processes, give the kernels' bytes."""
    importance = np.random.default_rng(0).random(512).astype(np.float32)
    cases = [(name, rows(n), w) for n in (1, 40, 3) for name in ("Q4_K", "Q8_0", "Q6_K") for w in (None, importance)]
    expected = [quantized(quant.NumpyEngine(), *case) for case in cases]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda case: quantized(two, *case), cases)) == expected


def test_a_request_that_does_not_fit_is_refused_before_it_is_sent(two: Processes) -> None:
    """Rows that cannot be cut into blocks are the caller's error; the processes go on."""
    with pytest.raises(FormatError, match="a multiple of 256 columns"):
        quantized(two, "Q4_K", rows(2, 100))
    assert quantized(two, "Q4_K", rows(2)) == quantized(quant.NumpyEngine(), "Q4_K", rows(2))


def test_an_interrupt_is_the_parents_to_answer(two: Processes) -> None:
    """Ctrl-C reaches all processes of a terminal; the ones that quantize do not end by it."""
    for pid in two.pids:
        os.kill(pid, signal.SIGINT)
    assert quantized(two, "Q4_K", rows(2)) == quantized(quant.NumpyEngine(), "Q4_K", rows(2))


def test_a_process_that_was_killed_is_named() -> None:
    """The error says which process ended and how, and that fewer threads need less memory."""
    with processes(1) as running:
        quantized(running, "Q4_K", rows(2))
        os.kill(running.pids[0], signal.SIGKILL)
        with pytest.raises(ResourceError, match=rf"process {running.pids[0]}.*\n(.*\n)*.*exit status -9") as raised:
            quantized(running, "Q4_K", rows(2))
    assert "--threads 1" in str(raised.value)


def test_processes_end_with_the_block() -> None:
    """Nothing is left running, and no descriptor open."""
    before = sorted(Path("/dev/fd").iterdir())
    with processes(2) as running:
        watched = [os.pidfd_open(pid) for pid in running.pids]
    for descriptor in watched:
        assert select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)
    assert sorted(Path("/dev/fd").iterdir()) == before


def test_processes_end_with_a_parent_that_is_killed() -> None:
    """A parent that could not say goodbye leaves nothing running."""
    code = (
        "from pipeline.quant._processes import processes\n"
        "with processes(2) as running:\n"
        "    print(*running.pids, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(watched) == 2
    for descriptor in watched:
        assert select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)


def test_only_work_that_pays_is_spread() -> None:
    """One thread, or few weights, stay in this process, and so do conversions, which wait for memory alone."""
    engine = quant.NumpyEngine()
    for threads, n_weights in ((1, 1 << 30), (8, 1000)):
        with engine.in_parallel(threads, n_weights) as chosen:
            assert chosen is engine
    with engine.in_parallel(2, 1 << 30) as chosen:
        assert chosen is not engine
        for name in ("Q4_K", "F16"):
            assert quantized(chosen, name, rows(3)) == quantized(engine, name, rows(3))
    spread, alone = (engine.memory_bytes({"Q4_K"}, threads, 1 << 30) for threads in (2, 1))
    assert spread > 2 * alone
