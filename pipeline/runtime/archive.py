"""Unpacks one folder of a .tar.gz: the archive comes in, plain files go out, and nothing lands anywhere else."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from pipeline.errors import FormatError, ResourceError

MAX_BYTES = 2 * 1024**3


def unpack_folder(archive: Path, folder: str, into: Path) -> None:
    """Unpack the files below <top>/<folder>/ of *archive* into *into*, which must not exist yet.

    The whole archive is judged first: its names must stay below one top folder, and it may hold nothing but folders
    and plain files.  Of the modes only "executable" is kept; owners and times are not.

    Raises:
        FormatError: if the archive is broken, holds a link, a device or a name that leads out, or lacks *folder*.
        ResourceError: if it would unpack to more than MAX_BYTES.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            chosen = _choose(tar, archive, folder)
            into.mkdir(parents=True)
            for member, path in chosen:
                _write(tar, member, into / path)
    except (tarfile.TarError, EOFError, OSError) as exc:
        if isinstance(exc, OSError) and exc.filename not in {None, str(archive)}:
            raise
        raise FormatError("not a whole .tar.gz file", where=archive, found=exc) from exc


def _choose(tar: tarfile.TarFile, archive: Path, folder: str) -> list[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Judge every member and pick the wanted files, each with its path below *folder*."""
    chosen = []
    n_bytes = 0
    for member in tar:
        path = _safe_path(member, archive)
        inside = PurePosixPath(*path.parts[1:])
        n_bytes += member.size
        if n_bytes > MAX_BYTES:
            raise ResourceError(
                "the archive would unpack to too much", where=archive, expected=f"at most {MAX_BYTES} bytes"
            )
        if member.isreg() and inside.is_relative_to(folder) and inside != PurePosixPath(folder):
            chosen.append((member, inside.relative_to(folder)))
    if not chosen:
        raise FormatError(f"holds no folder {folder!r}", where=archive)
    return chosen


def _safe_path(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """Return the member's path, if it can be trusted."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise FormatError("a name leads out of the archive", where=archive, found=repr(member.name))
    if not (member.isreg() or member.isdir()):
        raise FormatError("holds something other than files and folders", where=archive, found=repr(member.name))
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one plain file under a new name."""
    source = tar.extractfile(member)
    if source is None:  # cannot be: _choose takes plain files only
        raise FormatError("holds a member without content", where=member.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    path.chmod(0o755 if member.mode & 0o111 else 0o644)
