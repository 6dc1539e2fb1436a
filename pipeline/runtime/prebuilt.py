"""The optional prebuilt llama.cpp (extra `run`: the xllamacpp wheel), as a server program like llama-server.

It is slower than the vendored build, may be of another version, and is never what a test compares with.  It runs in a
process of its own: llama.cpp may abort on a bad model.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def prebuilt_version() -> str | None:
    """Return the version of the installed xllamacpp, or None; nothing is loaded."""
    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return None


def prebuilt_command(gguf: Path, n_ctx: int, threads: int | None, embedding: bool) -> list[str]:
    """Return the command that serves *gguf* and says "listening on URL", until its standard input ends."""
    command = [sys.executable, "-m", "pipeline.runtime._prebuilt_server", str(gguf), "--n-ctx", str(n_ctx)]
    if threads is not None:
        command += ["--threads", str(threads)]
    return [*command, "--embedding"] if embedding else command
