"""A process that quantizes rows as it is asked to: `python -m pipeline.quant._child DESCRIPTOR` (see `_processes`)."""

from __future__ import annotations

import mmap
import signal
import sys

from pipeline import quant
from pipeline.quant._processes import DONE, REQUEST, Shared


def main() -> None:
    """Answer requests from standard input until it ends; the parent decides what an interrupt means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = int(sys.argv[1])
    memory: mmap.mmap | None = None
    while len(request := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        name, n_rows, n_cols, is_weighted, n_bytes = REQUEST.unpack(request)
        if memory is None or len(memory) != n_bytes:
            memory = mmap.mmap(descriptor, n_bytes)
        kind = quant.get(name.rstrip(b"\0").decode())
        shared = Shared.of(memory, kind, (n_rows, n_cols), is_weighted=is_weighted)
        kind.quantize_rows(shared.x, shared.out, shared.importance)
        sys.stdout.buffer.write(DONE)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
