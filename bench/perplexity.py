"""Perplexity of SmolLM2-135M as we convert it, by llama.cpp's own program.

    python -m bench.perplexity TEXT [--dtype f16] [--chunks 20] [--context 512]

On WikiText-2's raw test text, `--dtype f16` gives 23.0052: the figure of llama.cpp's own converter.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.runtime.llama import require_llama

ROOT = Path(__file__).parent.parent


def checkpoint() -> Path:
    """Return the folder of the checkpoint, made the way the tests make it."""
    spec = importlib.util.spec_from_file_location("oracle_smollm2", ROOT / "tests" / "oracle" / "smollm2.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.make_checkpoint(data.cache_home(), ROOT / "tests" / "fixtures" / "smollm2")
    return made


def main() -> None:
    """Convert, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--context", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "model.gguf"
        command = [sys.executable, "-m", "pipeline.cli", "convert", checkpoint(), "-o", gguf, "--dtype", given.dtype]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        program = require_llama().program("llama-perplexity")
        options = ["-c", str(given.context), "--chunks", str(given.chunks)]
        done = subprocess.run(
            [program, "-m", gguf, "-f", given.text, *options], check=True, capture_output=True, text=True
        )
    estimate = re.search(r"Final estimate: PPL = .*", done.stdout + done.stderr)
    print(estimate[0] if estimate else "llama-perplexity printed no estimate")


if __name__ == "__main__":
    main()
