"""Sending a file to a registry on this machine: wall time and peak memory, against `ollama push`.

    python -m bench.registry [--megabytes N] [--rounds N] [--json FILE]

The registry is docker-registry, begun anew for each round.  Ollama is the one that the tests have installed; where
there is none, or no llama.cpp, ours is measured alone.  Peak memory is that of our process; for Ollama, whose server
does the work, it is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.end_to_end import ROOT, measure
from pipeline import data
from pipeline.publish import Release, ReleaseEntry, open_target
from pipeline.publish._store_target import StoreTarget
from pipeline.runtime.ollama import TRIED
from pipeline.store import Store, hash_file
from pipeline.types import Blob

_PIECE = 1 << 24


class _Silent:
    """A log that shows nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def bar(self, _text: str) -> Any:
        """Show nothing."""
        return contextlib.nullcontext(lambda _done, _total: None)


def _oracle(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ROOT / "tests" / "oracle" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


def _release(path: Path, blob: Blob) -> Release:
    return Release("bench", "large", (ReleaseEntry(("F16",), path, blob, "llama", blob.size // 2, "F16"),))


def _send(url: str, path: Path, blob: Blob) -> None:
    """Publish one file, as the child whose memory is measured."""
    with open_target(url) as target:
        target.publish(_release(path, blob), _Silent())


@contextlib.contextmanager
def _ollama(folder: Path) -> Iterator[Any]:
    """Give a running Ollama, or None where none is installed."""
    program = data.cache_home() / "ollama" / TRIED[-1][0] / "bin" / "ollama"
    if not program.exists():
        yield None
        return
    with _oracle("ollama").running_ollama(program, folder) as server:
        yield server


def run(n_bytes: int, rounds: int) -> dict[str, Any]:
    """Measure ours and theirs in turn, *rounds* times, and return medians in seconds, MB and MB/s."""
    registries = _oracle("docker_registry")
    samples: dict[str, list[dict[str, float]]] = {"ours": [], "ollama push": []}
    with tempfile.TemporaryDirectory(prefix="gguf-pipeline-bench-", dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        path = folder / "large.gguf"
        random = np.random.default_rng(1)
        with path.open("wb") as file:
            for start in range(0, n_bytes, _PIECE):
                file.write(random.bytes(min(_PIECE, n_bytes - start)))
        blob = hash_file(path)
        for number in range(rounds):
            with registries.running_registry(folder / f"ours-{number}") as registry:
                command = [sys.executable, "-m", "bench.registry", "--send", registry.url, path, blob.digest]
                samples["ours"].append(measure(command))
            with registries.running_registry(folder / f"theirs-{number}") as registry, _ollama(folder / "o") as server:
                if server is None:
                    continue
                target = StoreTarget(Store(server.models), registry.host)
                target.write(_release(path, blob), _Silent())
                started = time.monotonic()
                server.cli("push", "--insecure", f"{registry.host}/bench/large:F16")
                samples["ollama push"].append({"wall": time.monotonic() - started})
    medians = {
        who: {key: statistics.median(s[key] for s in runs) for key in runs[0]} for who, runs in samples.items() if runs
    }
    for figures in medians.values():
        figures["mb_per_s"] = n_bytes / 1e6 / figures["wall"]
    return {"bytes": n_bytes, "rounds": rounds, "cores": os.cpu_count(), **medians}


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    print(f"{result['bytes'] / 1e6:,.0f} MB to docker-registry on this machine, median of {result['rounds']}")
    for who, figures in result.items():
        if isinstance(figures, dict):
            peak = f"{figures['peak_mb']:8.0f} MB peak" if "peak_mb" in figures else ""
            print(f"  {who:<12} {figures['wall']:8.1f} s wall {figures['mb_per_s']:8.0f} MB/s {peak}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--send", nargs=3, metavar=("URL", "FILE", "DIGEST"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.send:
        url, path, digest = given.send
        _send(url, Path(path), Blob(digest, Path(path).stat().st_size))
        return
    result = run(given.megabytes * 1_000_000, given.rounds)
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
