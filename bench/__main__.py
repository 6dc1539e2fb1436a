"""Run all benchmarks: kernels per type, a whole model, three quantizations at once, a download in front.

python -m bench [--json FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import download, end_to_end, kernels, outputs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the figures there, too")
folder = parser.parse_args().json
for benchmark in (kernels, end_to_end, outputs, download):
    name = benchmark.__name__.rpartition(".")[2]
    benchmark.main(["--json", str(folder / f"{name}.json")] if folder else [])
    print()
