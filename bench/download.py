"""A checkpoint from the Hub to Q4_K_M: converting while it arrives, against downloading it first.

    python -m bench.download [--layers N] [--rate MB_PER_S]... [--json FILE]

The Hub is the tests' own, in this process, on this machine; its line is throttled to each rate in turn, 0 is as fast as
it goes.  Every run starts with an empty cache and an empty store.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.end_to_end import ROOT, make_checkpoint, measure

REPOSITORY = "bench/model"


def run(n_layers: int, rates: Sequence[float]) -> dict[str, Any]:
    """Measure both ways at each of *rates* (MB/s), and return wall seconds and their ratio."""
    with tempfile.TemporaryDirectory(prefix="gguf-pipeline-bench-", dir=os.environ.get("BENCH_DIR")) as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        n_weights = make_checkpoint(checkpoint, n_layers)
        with _hub_server().serve() as server:
            files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
            server.hub.repo(REPOSITORY, files, lfs=(".safetensors",))
            rows = [_compare(server.hub, rate, Path(scratch) / "home") for rate in rates]
    return {"weights": n_weights, "bytes": sum(map(len, files.values())), "cores": os.cpu_count(), "rates": rows}


def _compare(hub: Any, rate: float, home: Path) -> dict[str, float]:
    hub.rate = rate * 1e6 or None
    ours = [sys.executable, "-m", "pipeline.cli"]
    publish = [*ours, "publish", REPOSITORY, "--quant", "Q4_K_M", "--proof", "none", "--json"]
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    overlapped = measure(publish, **environment)["wall"]
    shutil.rmtree(home)
    first = measure([*ours, "pull", REPOSITORY, "--json"], **environment)["wall"]
    then = measure(publish, **environment)["wall"]
    shutil.rmtree(home)
    return {
        "MB/s": rate, "overlapped": overlapped, "download": first, "then publish": then,
        "wall / one after the other": overlapped / (first + then),
    }  # fmt: skip


def _hub_server() -> Any:
    """Load the tests' Hub."""
    name = "oracle_hub_server"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "oracle" / "hub_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    size, cores = result["bytes"] / 1e6, result["cores"]
    print(f"Hub -> Q4_K_M, {result['weights'] / 1e9:.2f} B weights in BF16 ({size:.0f} MB), {cores} cores, seconds")
    for row in result["rates"]:
        rate = f"{row['MB/s']:g} MB/s" if row["MB/s"] else "not throttled"
        both = f"{row['download']:.1f} + {row['then publish']:.1f}"
        print(f"  {rate:<14} overlapped {row['overlapped']:6.1f}   one after the other {both:>12}", end="")
        print(f"   ratio {row['wall / one after the other']:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1, help="1 gives 0.18 billion weights")
    parser.add_argument("--rate", type=float, action="append", metavar="MB_PER_S", help="default: 100, and 0")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    result = run(given.layers, given.rate or (100.0, 0.0))
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
