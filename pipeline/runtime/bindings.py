"""llama.cpp's Python bindings from the pinned package, without a second compile; tests and developers use them.

They load the vendored build's libraries: set LLAMA_CPP_LIB_PATH to its folder before `import llama_cpp`.
"""

from __future__ import annotations

import sys
from importlib import metadata

from pipeline.errors import ToolError, UsageError
from pipeline.runtime.fetch import Log, fetch_package, run_pip
from pipeline.runtime.pin import Pin, read_pin


def install_bindings(log: Log, pin: Pin | None = None) -> None:
    """Install the bindings of the pinned version into this virtual environment, unless they are there.

    Raises:
        UsageError: if this Python is not in a virtual environment.
        ToolError: if pip cannot build or install them.
    """
    pin = pin or read_pin()
    if installed_bindings() == pin.version:
        return
    if sys.prefix == sys.base_prefix:
        raise UsageError(
            "the bindings go into virtual environments only", where=sys.prefix, hint="python3 -m venv .venv"
        )
    package = fetch_package(pin, log)
    log("installing the Python bindings")
    # No cache: pip would hand this wheel without a library to the next person who asks for the package.
    done = run_pip(["install", "--no-cache-dir", str(package)])
    if done.returncode:
        raise ToolError(
            f"pip could not install {pin.package} {pin.version}", found="\n".join(done.stdout.splitlines()[-12:])
        )


def installed_bindings() -> str | None:
    """Return the version of the installed bindings, or None."""
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return None
