"""How long a plan takes to write on this machine, and how much memory: estimates, made before the work.

Time is measured on a little of each kind of work, in processor seconds, so that other programs do not count; the
estimate is that of a machine with nothing else to do and weights that are in the page cache or on a fast disk.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from pipeline import machine, quant
from pipeline.blueprint import PRECISIONS
from pipeline.checkpoint.reader import decode_rows
from pipeline.encode import choose_engine, memory_bytes, work_of
from pipeline.gguf import tensor_bytes
from pipeline.types import Plan

_ROWS, _COLUMNS = 129, 2048  # as many blocks as a kernel takes at once
_CHECK_BYTES = 1 << 22
_ROUNDS = 2  # the first one takes the page faults

# What a weight takes of the types that libggml encodes, 0.3 to 1.2e-6 s.  They are not measured: making their grids
# takes up to 8 s, and a plan needs no library.
_NATIVE = 1.0e-6

# What a run holds beside tiles: what measures errors, the report; and for each file its header and two threads.
_MORE, _MORE_PER_FILE = 3_000_000, 1_000_000

# Reading, checking for NaN, gathering, writing: what is not one of the kernels, in seconds for a byte of source.
_OTHER = 1.0e-9


def seconds_to_write(plans: Sequence[Plan], threads: int = 0, engine: str = quant.AUTO) -> float:
    """Estimate the wall time of writing the files of *plans* from one reading of their source.

    *threads* workers (0: one for each core) encode with *engine*; one thread writes and hashes.
    """
    cores = threads or machine.usable_cores()
    plans = _encoded(plans)
    files = [plan.tensors for plan in plans]
    chosen = choose_engine(engine, files)
    encoding = sum(_encoding(dtype, kind, chosen.name) * n for (dtype, kind), n in work_of(files).items())
    sources = Counter[str]()
    for tensor in plans[0].tensors:
        if tensor.view:
            sources[tensor.view.dtype] += tensor.n_rows * tensor.n_cols
    reading = sum(tensor_bytes(dtype, (n,)) for dtype, n in sources.items()) * _OTHER
    writing = sum(plan.file_bytes for plan in plans) * _hashing()
    return max((encoding + reading + writing) / min(cores, machine.usable_cores()), writing)


def bytes_to_write(plans: Sequence[Plan], threads: int = 0, engine: str = quant.AUTO) -> int:
    """Estimate the most memory that this process will have taken when the files of *plans* are written."""
    tiles = memory_bytes(_encoded(plans), threads or machine.usable_cores(), engine)
    return max(machine.peak_bytes(), machine.resident_bytes() + tiles + _MORE + len(plans) * _MORE_PER_FILE)


def _encoded(plans: Sequence[Plan]) -> Sequence[Plan]:
    """Return the plans that are not mere copies, or one if all are."""
    return [plan for plan in plans if not plan.verbatim] or plans[:1]


@cache
def _encoding(dtype: str, kind: str, engine: str) -> float:
    """Measure the processor seconds of one weight, decoded from *dtype* and encoded as *kind*."""
    if isinstance(quant.get(kind), quant.NativeType):
        return _NATIVE
    if isinstance(quant.get(dtype), quant.NativeType):
        dtype = "F32"  # decoding these is fast
    chosen = quant.get_engine(engine, {})
    values = np.random.default_rng(0).standard_normal((_ROWS, _COLUMNS), np.float32)
    raw = np.empty((_ROWS, quant.get(dtype).row_bytes(_COLUMNS)), np.uint8)
    quant.get(dtype).quantize_rows(values, raw)
    encoded = np.empty((_ROWS, quant.get(kind).row_bytes(_COLUMNS)), np.uint8)
    from_bf16 = chosen.from_bf16(quant.get(kind)) if dtype == "BF16" else None

    def work() -> None:
        if from_bf16:
            from_bf16(raw.view(np.uint16), encoded)
            return
        if dtype in PRECISIONS:
            decode_rows(dtype, raw, values)
        else:
            quant.get(dtype).dequantize_rows(raw, values)
        chosen.quantize_rows(quant.get(kind), values, encoded)

    return _measure(work) / values.size


@cache
def _hashing() -> float:
    """Measure the processor seconds of one byte in SHA-256."""
    data = bytes(_CHECK_BYTES)
    return _measure(lambda: hashlib.sha256(data).digest()) / _CHECK_BYTES


def _measure(work: Callable[[], object]) -> float:
    found = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return min(found)
