"""What is shipped works: the wheel in a clean environment, from another folder, without the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def archives(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and a source archive, built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    for target in ("wheel", "sdist"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
            cwd=repository,
            check=True,
            capture_output=True,
            timeout=120,
        )
    return folder


def test_the_wheel_publishes_the_demo(archives: Path, tmp_path: Path) -> None:
    """Installed into an environment of its own, the command publishes the demo from any folder."""
    (wheel,) = archives.glob("*.whl")
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    # The dependencies come from this environment: the wheel itself is what is tested here.
    site = next(home.glob("lib/python*/site-packages"))
    (site / "deps.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)  # noqa: S202  our own wheel
    work = tmp_path / "elsewhere"
    work.mkdir()
    done = subprocess.run(
        [home / "bin" / "python", "-m", "pipeline.cli", "publish", "demo", "--proof", "none", "--json"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert str(site) in report["source"]["folder"]
    assert report["files"][0]["recipe"] == "Q4_K_M"


def test_the_wheel_has_what_it_needs_and_no_more(archives: Path) -> None:
    """Templates, aliases, pin, demo and notices are in; tests are not."""
    (wheel,) = archives.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = "pipeline/_data"
    for name in ("models.toml", "templates/Modelfile.j2", "vendor/llama.cpp/pin.toml", "models/demo/config.json"):
        assert f"{data}/{name}" in names
    assert any(name.endswith("THIRD_PARTY_NOTICES") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_the_source_archive_has_no_fixtures(archives: Path) -> None:
    """Fixtures stay in the repository."""
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
    assert not any("/tests/fixtures/" in name for name in names)
    assert any(name.endswith("pipeline/flow.py") for name in names)
