"""Kernels: nanoseconds per weight of each tensor type, ours and llama.cpp's reference C, one thread.

    python -m bench.kernels [--rounds N] [--json FILE]

Both quantize the same rows in turn, round after round, so that a change of the machine's speed meets both; the time is
the thread's on the processor, and the ratio the median of the rounds' ratios, above 1 where we are faster.  Besides
normal weights there are rows that send kernels on their slow paths: zeros of both signs, a zero and a tiny sub-block in
each super-block.
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

from pipeline import quant
from pipeline.runtime.llama import require_llama

ROOT = Path(__file__).parent.parent
N_COLS = 4096
N_ROWS = {"Q4_K": 128, "Q5_K": 128, "Q6_K": 256}
GOAL = 0.8


def reference() -> Any:
    """Open the reference library the way the tests do."""
    path = ROOT / "tests" / "oracle" / "libggml.py"
    spec = importlib.util.spec_from_file_location("oracle_libggml", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LibGgml(require_llama().library("ggml-base"))


def data_sets(n_rows: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield (name, rows)."""
    normal = (np.random.default_rng(1).standard_normal((n_rows, N_COLS)) * 0.02).astype(np.float32)
    yield "normal", normal
    yield "zeros", np.zeros_like(normal)
    yield "zeros, one -0", np.where(np.arange(N_COLS) == 7, np.float32(-0.0), np.zeros_like(normal))
    for factor, name in ((0, "zero sub-block"), (1e-9, "tiny sub-block")):
        blocks = normal.reshape(-1, 8, 32).copy()
        blocks[:, 5] *= np.float32(factor)
        yield name, blocks.reshape(normal.shape)


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call in this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(kind: quant.BlockType, x: NDArray[np.float32], library: Any, rounds: int) -> dict[str, float]:
    """Time both on *x* and compare their bytes."""
    ours = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    theirs = np.empty_like(ours)
    kind.quantize_rows(x, ours)
    library.quantize_into(kind.id, x, theirs)
    assert np.array_equal(ours, theirs)
    pairs = [
        (seconds(lambda: kind.quantize_rows(x, ours)), seconds(lambda: library.quantize_into(kind.id, x, theirs)))
        for _ in range(rounds)
    ]
    return {
        "ours_ns": min(own for own, _ in pairs) / x.size * 1e9,
        "c_ns": min(c for _, c in pairs) / x.size * 1e9,
        "ratio": statistics.median(c / own for own, c in pairs),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all types and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="how often each pair is timed (default 11)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("types", nargs="*", help="only these types")
    given = parser.parse_args(arguments)

    library = reference()
    figures: list[dict[str, Any]] = []
    print(f"{'type':6} {'data':15} {'ours':>8} {'C':>8}   C/ours   (ns per weight; goal {GOAL})")
    for name in given.types or quant.types():
        for data, x in data_sets(N_ROWS.get(name, 1024)):
            row = measure(quant.get(name), x, library, given.rounds)
            figures.append({"type": name, "data": data, **row})
            print(f"{name:6} {data:15} {row['ours_ns']:8.2f} {row['c_ns']:8.2f} {row['ratio']:8.2f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
