"""Kernels: nanoseconds per weight of each tensor type, both engines and llama.cpp's reference C, one thread.

    python -m bench.kernels [--rounds N] [--slow] [--json FILE] [TYPE ...]

All quantize the same rows in turn, round after round, so that a change of the machine's speed meets all; the time is
the thread's on the processor, and a ratio the median of the rounds' ratios, above 1 where we are faster.  The rows are
a tile's worth of normal weights, and of real ones where SmolLM2-135M can be had; types that take an importance matrix
are measured with one, too.  `--slow` adds rows that might send kernels on slow paths: zeros, constants, a zero or a
tiny sub-block in each super-block.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import data, quant
from pipeline.checkpoint import TensorReader, open_checkpoint
from pipeline.quant.fast import FastEngine, host, kernels
from pipeline.runtime.llama import require_llama

ROOT = Path(__file__).parent.parent
N_ROWS, N_COLS = 64, 4096
LEAST_SECONDS = 2e-3
REAL = "model.layers.14.mlp.down_proj.weight"  # (576, 1536)
F32 = NDArray[np.float32]


def oracle(name: str) -> Any:
    """Open a module of tests/oracle the way the tests do."""
    path = ROOT / "tests" / "oracle" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real_weights() -> F32 | None:
    """Return rows of SmolLM2-135M; None where it is not there and cannot be had."""
    try:
        folder = oracle("smollm2").make_checkpoint(data.cache_home(), ROOT / "tests" / "fixtures" / "smollm2")
    except Exception as error:
        print(f"no real weights: {error}")
        return None
    tensor = open_checkpoint(folder).tensors[REAL]
    n_rows, n_cols = tensor.shape
    raw, rows = np.empty((n_rows, tensor.n_bytes // n_rows), np.uint8), np.empty((n_rows, n_cols), np.float32)
    with TensorReader() as reader:
        reader.read_raw_rows(tensor, slice(None), raw)
    quant.get(tensor.dtype).dequantize_rows(raw, rows)
    n_cols -= n_cols % 256
    return np.ascontiguousarray(rows[: N_ROWS * N_COLS // n_cols, :n_cols])


def data_sets(real: F32 | None, *, slow: bool) -> Iterator[tuple[str, F32]]:
    """Yield (name, rows)."""
    normal = (np.random.default_rng(1).standard_normal((N_ROWS, N_COLS)) * 0.02).astype(np.float32)
    yield "normal", normal
    if real is not None:
        yield "real", real
    if not slow:
        return
    yield "zeros", np.zeros_like(normal)
    yield "zeros, one -0", np.where(np.arange(N_COLS) == 7, np.float32(-0.0), np.zeros_like(normal))
    yield "constant", np.full_like(normal, -0.5)
    for factor, name in ((0, "zero sub-block"), (1e-9, "tiny sub-block")):
        blocks = normal.reshape(-1, 8, 32).copy()
        blocks[:, 5] *= np.float32(factor)
        yield name, blocks.reshape(normal.shape)


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call in this thread, after one that brings the rows into the cache.

    When a model is written they are there, too: they have just been decoded.  Short calls are repeated, for an
    interrupt takes as long as a call on zeros does.
    """
    call()
    spent, n_calls, start = 0.0, 0, time.thread_time()
    while spent < LEAST_SECONDS:
        call()
        n_calls += 1
        spent = time.thread_time() - start
    return spent / n_calls


def measure(kind: quant.BlockType, x: F32, importance: F32 | None, library: Any, rounds: int) -> dict[str, float]:
    """Time the engines and the reference on *x* and compare their bytes."""
    theirs = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    library.quantize_into(kind.id, x, theirs, importance)
    calls: dict[str, Callable[[], object]] = {}
    for engine in (quant.NumpyEngine(), FastEngine()):
        kernel = kernels().get(kind.name)
        if engine.name == "fast" and not (
            kernel and (kernel.build_weighted if importance is not None else kernel.build)
        ):
            continue
        ours = np.empty_like(theirs)
        calls[engine.name] = lambda engine=engine, ours=ours: engine.quantize_rows(kind, x, ours, importance)
        calls[engine.name]()
        assert np.array_equal(ours, theirs), (engine.name, kind.name)
    calls["c"] = lambda: library.quantize_into(kind.id, x, theirs, importance)
    times = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds)]
    figures = {f"{name}_ns": min(one[name] for one in times) / x.size * 1e9 for name in calls}
    for name in calls.keys() - {"c"}:
        figures[f"{name}_ratio"] = statistics.median(one["c"] / one[name] for one in times)
        figures[f"{name}_ratio_min"] = min(one["c"] / one[name] for one in times)
    return figures


def rows_of(names: Sequence[str], real: F32 | None, library: Any, given: Any) -> Iterator[dict[str, Any]]:
    """Measure each type on each set of rows, with and without an importance matrix."""
    for name in names:
        kind = quant.get(name)
        for matrix in ("", "imatrix") if kind.is_weighted else ("",):
            for what, x in data_sets(real, slow=given.slow):
                importance = np.random.default_rng(0).exponential(1, x.shape[1]).astype(np.float32) if matrix else None
                figures = measure(kind, x, importance, library, given.rounds)
                yield {"type": name, "importance": bool(matrix), "data": what, **figures}


def show(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    name = row["type"] + (" imatrix" if row["importance"] else "")
    parts = [f"{row['c_ns']:8.2f}"]
    for engine in ("numpy", "fast"):
        if f"{engine}_ns" in row:
            parts += [
                f"{row[f'{engine}_ns']:9.2f}",
                f"{row[f'{engine}_ratio']:7.2f}",
                f"{row[f'{engine}_ratio_min']:7.2f}",
            ]
    print(f"{name:16} {row['data']:15}", *parts, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all types and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default 7)")
    parser.add_argument("--slow", action="store_true", help="measure rows that might take slow paths, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("types", nargs="*", help="only these types; default: all that have a kernel of ours")
    given = parser.parse_args(arguments)

    library = oracle("libggml").LibGgml(require_llama().library("ggml-base"))
    names = given.types or [name for name, kind in quant.types().items() if not isinstance(kind, quant.NativeType)]
    processor = host()
    print(
        f"{processor.cpu}, {processor.name}; ns per weight, ratio to C as median and minimum of {given.rounds} rounds"
    )
    print(f"{'type':16} {'data':15} {'C':>8} {'NumPy':>9} {'ratio':>7} {'min':>7} {'fast':>9} {'ratio':>7} {'min':>7}")
    figures = []
    for row in rows_of(names, real_weights(), library, given):
        figures.append(row)
        show(row)
    if given.json:
        about = {"cpu": processor.cpu, "instructions": processor.name, "rows": figures}
        given.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
