"""Three quantizations of a checkpoint in one run, against three runs one after the other.

    python -m bench.outputs [--layers N] [--rounds N] [--json FILE]

The files are in the page cache in both cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.end_to_end import make_checkpoint, measure

QUANTS = ("Q4_K_M", "Q5_K_M", "Q8_0")


def run(n_layers: int, rounds: int) -> dict[str, Any]:
    """Measure both ways in turn, and return medians of wall seconds and the median of the ratios."""
    with tempfile.TemporaryDirectory(prefix="gguf-pipeline-bench-", dir=os.environ.get("BENCH_DIR")) as scratch:
        checkpoint, store = Path(scratch) / "checkpoint", Path(scratch) / "store"
        n_weights = make_checkpoint(checkpoint, n_layers)

        def publish(quants: str) -> float:
            command = [sys.executable, "-m", "pipeline.cli", "publish", checkpoint, "--quant", quants]
            environment = {"GGUF_PIPELINE_STORE": str(store), "XDG_DATA_HOME": scratch}
            wall = measure([*command, "--proof", "none", "--json"], **environment)["wall"]
            shutil.rmtree(store)
            return wall

        publish(QUANTS[0])  # the checkpoint is in the page cache, and the kernels are compiled
        together, apart = [], []
        for _ in range(rounds):
            together.append(publish(",".join(QUANTS)))
            apart.append(sum(map(publish, QUANTS)))
    ratios = [one / other for one, other in zip(together, apart, strict=True)]
    return {
        "weights": n_weights,
        "cores": os.cpu_count(),
        "rounds": rounds,
        "in one run": statistics.median(together),
        "one after the other": statistics.median(apart),
        "wall / one after the other": statistics.median(ratios),
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    weights, cores = result["weights"] / 1e9, result["cores"]
    print(
        f"{', '.join(QUANTS)} of {weights:.2f} B weights in BF16, {cores} cores, median of {result['rounds']}, seconds"
    )
    print(f"  in one run {result['in one run']:.1f}   one after the other {result['one after the other']:.1f}", end="")
    print(f"   ratio {result['wall / one after the other']:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="6 give 0.40 billion weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    result = run(given.layers, given.rounds)
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
