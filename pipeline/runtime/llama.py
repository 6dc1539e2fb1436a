"""Finds llama.cpp: a folder named by the user, else what `make llama` built for this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import data
from pipeline.errors import ToolError, UsageError
from pipeline.runtime.pin import Pin, read_pin

ENVIRONMENT = "GGUF_PIPELINE_LLAMA"
BUILD_HINT = "`make llama` builds it (without a checkout: python -m pipeline.runtime.build)"
MARKER = "install.json"

LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


@dataclass(frozen=True)
class LlamaInstall:
    """A built llama.cpp.

    *kind* is "vendored" (built by `make llama`, the oracle of the tests) or "env" (named by GGUF_PIPELINE_LLAMA);
    *source_dir* holds the tree it was built from (converter, gguf-py, templates, vocabularies), if that is known.
    """

    bin_dir: Path
    lib_dir: Path
    version: str
    kind: Literal["vendored", "env"]
    source_dir: Path | None

    @property
    def label(self) -> str:
        """Say in a few words which llama.cpp this is."""
        where = "vendored build" if self.kind == "vendored" else f"{ENVIRONMENT}={self.bin_dir}"
        return f"llama.cpp {self.version} ({where})"

    def program(self, name: str) -> Path:
        """Return the path of a program such as "llama-quantize".

        Raises:
            ToolError: if this build has none of that name.
        """
        path = self.bin_dir / name
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ToolError(f"llama.cpp's {name} is missing", where=path, hint=self._hint())
        return path

    def library(self, name: str) -> Path:
        """Return the path of a shared library such as "ggml-base" or "llama" (without "lib" and suffix).

        Raises:
            ToolError: if this build has none of that name.
        """
        path = self.lib_dir / f"lib{name}{LIBRARY_SUFFIX}"
        if not path.exists():
            raise ToolError(f"llama.cpp's library {name} is missing", where=path, hint=self._hint())
        return path

    def _hint(self) -> str:
        return (
            BUILD_HINT
            if self.kind == "vendored"
            else f"unset {ENVIRONMENT}, or name a folder that has it; {BUILD_HINT}"
        )


def find_llama() -> LlamaInstall | None:
    """Find llama.cpp: GGUF_PIPELINE_LLAMA (a folder with its programs) wins, then the cache; None if neither is there.

    Raises:
        UsageError: if GGUF_PIPELINE_LLAMA names no such folder.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _named(Path(named))
    return vendored_install(read_pin())


def vendored_install(pin: Pin) -> LlamaInstall | None:
    """Return what `make llama` built from *pin* for this machine, or None if that is not whole."""
    if not (pin.install / MARKER).is_file():
        return None
    bin_dir = pin.install / "bin"
    version = f"{pin.short_commit}, package {pin.version}"
    return LlamaInstall(bin_dir, bin_dir, version, "vendored", pin.source if pin.source.is_dir() else None)


def require_llama() -> LlamaInstall:
    """Find llama.cpp, or say how to get it.

    Raises:
        ToolError: if there is none.
    """
    found = find_llama()
    if found is None:
        raise ToolError("llama.cpp is not built for this machine", hint=BUILD_HINT)
    return found


def _named(folder: Path) -> LlamaInstall:
    """Take the user's folder: bin/ of a build tree, or of an installed llama.cpp with lib/ beside it."""
    bin_dir = data.user_path(folder).absolute()
    programs = (
        sorted(path.name for path in bin_dir.glob("llama-*") if os.access(path, os.X_OK)) if bin_dir.is_dir() else []
    )
    if not programs:
        raise UsageError(
            f"{ENVIRONMENT} names no folder with llama.cpp's programs",
            where=folder,
            expected="a folder that holds llama-server, llama-quantize, ...",
            found="no folder" if not bin_dir.is_dir() else "no llama-* program in it",
            hint=f"unset it to use the vendored one; {BUILD_HINT}",
        )
    beside = bin_dir.parent / "lib"
    has_own = (bin_dir / f"libllama{LIBRARY_SUFFIX}").exists() or not beside.is_dir()
    return LlamaInstall(
        bin_dir, bin_dir if has_own else beside, _version(bin_dir, programs), "env", _source_of(bin_dir.parent)
    )


def _version(bin_dir: Path, programs: list[str]) -> str:
    """Ask a program for the commit it was built from."""
    program = "llama-server" if "llama-server" in programs else programs[0]
    try:
        answer = subprocess.run(
            [bin_dir / program, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "of unknown version"
    commit = re.search(r"\b(?:commit )?\(?([0-9a-f]{7,40})\)", answer.stdout + answer.stderr)
    return commit[1] if commit else "of unknown version"


def _source_of(build: Path) -> Path | None:
    """Read from a CMake build tree where its sources are."""
    try:
        text = (build / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    home = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.+)$", text, re.MULTILINE)
    return Path(home[1]) if home and Path(home[1]).is_dir() else None
