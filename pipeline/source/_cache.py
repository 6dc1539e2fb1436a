"""The Hugging Face client's cache on disk, for one repository, as the client itself lays it out and locks it.

    <cache>/models--org--name/refs/main                      the commit of a branch or tag
    <cache>/models--org--name/blobs/<etag>                   a file by content
    <cache>/models--org--name/blobs/<etag>.incomplete        the beginning of one that is on its way
    <cache>/models--org--name/snapshots/<commit>/<name>      a link to its blob
    <cache>/.locks/models--org--name/<etag>.lock

(huggingface_hub, file_download.py.)  Every program that uses the client sees what is fetched here, and the reverse.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline import crash, whole
from pipeline.source._retry import StoppedError

_POLL = 0.2  # seconds between two looks at a lock that another process holds
COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)


class RepoCache:
    """Where the files of *repo* lie below the cache folder *root*: all in *folder*, but for locks."""

    def __init__(self, root: Path, repo: str) -> None:
        from huggingface_hub.file_download import repo_folder_name

        self.root = root
        name = repo_folder_name(repo_id=repo, repo_type="model")
        self.folder = root / name
        self._locks = root / ".locks" / name

    def blob(self, etag: str) -> Path:
        """Return where the content *etag* lies, or will."""
        return self.folder / "blobs" / checked(etag)

    def partial(self, etag: str) -> Path:
        """Return where the beginning of the content *etag* lies while it is on its way."""
        return self.folder / "blobs" / f"{checked(etag)}.incomplete"

    def snapshot(self, commit: str) -> Path:
        """Return the folder with the files of *commit*."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that *revision* was when the Hub was last asked, or *revision* itself if it is one here."""
        if COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        with suppress(OSError, UnicodeDecodeError):
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
            return commit if COMMIT.fullmatch(commit) else None
        return None

    def remember(self, revision: str, commit: str) -> None:
        """Write down that *revision* is *commit*, for times without network; a cache that is read-only stays so."""
        path = self.folder / "refs" / revision
        if revision == commit or ".." in path.parts or self.commit_of(revision) == commit:
            return
        with suppress(OSError):
            whole.write_text(path, commit)

    def prepare(self) -> None:
        """Make the folder of the blobs."""
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)

    def point(self, commit: str, name: str, etag: str) -> None:
        """Make *name* of *commit* the blob *etag*, by a relative link where the disk has links, else by moving it."""
        pointer, blob = self.snapshot(commit) / name, self.blob(etag)
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if not _has_links(self.root):
            shutil.move(blob, pointer)
            return
        # The same for all who make this link, so that what a killed one left is used up.
        temp = pointer.with_name(f".{pointer.name}.new")
        temp.unlink(missing_ok=True)
        with suppress(FileExistsError):  # another process makes it too
            temp.symlink_to(target)
        crash.point("link made")
        with suppress(FileNotFoundError):  # another process has named it
            temp.replace(pointer)
        crash.point("link named")

    @contextmanager
    def locked(self, etag: str, stop: threading.Event, waiting: Callable[[], None]) -> Iterator[bool]:
        """Hold the client's own lock for *etag*; tell whether another process had to finish first, and call *waiting*.

        Raises:
            StoppedError: if *stop* is set while waiting.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it is documented

        path = self._locks / f"{checked(etag)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(WeakFileLock(path, timeout=_POLL))
                    break
                except TimeoutError as error:
                    if stop.is_set():
                        raise StoppedError from error
                if not told:
                    waiting()
                    told = True
            yield told


def checked(etag: str) -> str:
    """Return *etag*, which becomes a file's name, if it can be one.

    Raises:
        FileMetadataError: if not.
    """
    from huggingface_hub.errors import FileMetadataError

    if not _ETAG.fullmatch(etag):
        raise FileMetadataError(f"the ETag {etag[:80]!r} cannot be the name of a file")
    return etag


def _has_links(root: Path) -> bool:
    from huggingface_hub.file_download import are_symlinks_supported

    return are_symlinks_supported(root)
