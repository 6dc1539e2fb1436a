"""What is asked of a Hub about one repository, with huggingface_hub's own addresses, headers and session."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pipeline.patience import Patience
from pipeline.source._cache import COMMIT, checked
from pipeline.source._hub_errors import BrokenOffError
from pipeline.source._manifest import RemoteFile
from pipeline.source._retry import StoppedError, Tries

T = TypeVar("T")

LIBRARY = "gguf-pipeline"
_TIMEOUT = 30.0  # seconds for the one request that asks about the repository
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Found:
    """Where the bytes of a file are now, and what they are: *size* in bytes if known, *etag* names the content."""

    url: str
    etag: str
    size: int | None


class Line:
    """The line to *repo* on one Hub; any number of threads may use it, and `hang_up` ends what all of them wait for."""

    def __init__(self, repo: str, endpoint: str | None, patience: Patience, *, is_offline: bool = False) -> None:
        self.repo = repo
        self._patience = patience
        self.stop = threading.Event()
        self._endpoint = endpoint
        self._is_offline = is_offline
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def hang_up(self) -> None:
        """Stop every request that is under way and every wait between two."""
        self.stop.set()
        with self._lock:
            for one in self._sockets:
                with suppress(OSError):  # it may be closed already
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # past TLS, whose own state another thread reads

    def check(self) -> None:
        """Raise StoppedError after `hang_up`."""
        if self.stop.is_set():
            raise StoppedError

    def list_files(self, revision: str) -> tuple[str, dict[str, RemoteFile]]:
        """Ask which commit *revision* is; return it and all its files by name."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import FileMetadataError

        self._check_online()
        api = HfApi(endpoint=self._endpoint, library_name=LIBRARY)
        try:
            info = api.model_info(self.repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except (AttributeError, KeyError, TypeError) as error:  # the client trusts the answer's shape
            raise FileMetadataError("the answer does not describe a model") from error
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha) or info.siblings is None:
            raise FileMetadataError("the answer has no commit or no files")
        return info.sha, {s.rfilename: RemoteFile(s.rfilename, s.size, _etag(s)) for s in info.siblings}

    def find(self, commit: str, file: RemoteFile) -> Found:
        """Ask where the bytes of *file* are; the answer is good for some minutes (signed addresses)."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import FileMetadataError

        self._check_online()
        url = hf_hub_url(self.repo, file.name, revision=commit, endpoint=self._endpoint)
        meta = get_hf_file_metadata(url, library_name=LIBRARY, endpoint=self._endpoint)
        etag = meta.etag or file.etag
        if meta.commit_hash is None or etag is None:
            raise FileMetadataError("the answer has no commit or no ETag")
        return Found(urljoin(url, meta.location), checked(etag), file.size if meta.size is None else meta.size)

    @contextmanager
    def body(self, found: Found, start: int, end: int | None = None) -> Iterator[Any]:
        """Ask for the bytes of *found* from *start* on, up to but without *end*.

        Gives the response, whose body is not read yet; `first_byte` tells where it starts.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are documented
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity"}
        if self._is_elsewhere(found.url):
            headers.pop("authorization", None)  # the token is for the Hub alone
        if start or end is not None:
            headers["Range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
            if start and not self._is_elsewhere(found.url):
                # A store behind a redirect has ETags of its own; there the address itself names the content.
                headers["If-Range"] = f'"{found.etag}"'
        self.check()
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with (
            get_session().stream("GET", found.url, headers=headers, timeout=timeout) as answer,
            self._interruptible(answer),
        ):
            hf_raise_for_status(answer)
            yield answer

    def pieces(self, answer: Any) -> Iterator[bytes]:
        """Give the body of *answer* piece by piece, as it comes.

        Raises:
            StoppedError: after `hang_up`.
        """
        for piece in answer.iter_bytes():
            self.check()
            yield piece

    def tries(self) -> Tries:
        """Begin to count the failures of one task."""
        return Tries(self._patience, self.stop)

    def insist(self, ask: Callable[[], T], patience: Patience | None = None) -> T:
        """Give what *ask* returns, called as often as the patience (another one, if given) allows.

        Raises:
            StoppedError: after `hang_up`.
            Exception: the last error of *ask*.
        """
        tries = Tries(patience or self._patience, self.stop)
        while True:
            self.check()
            try:
                return ask()
            except Exception as error:
                tries.again(error)

    @contextmanager
    def _interruptible(self, answer: Any) -> Iterator[None]:
        stream = answer.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream is not None else None
        if not isinstance(sock, socket.socket):
            yield
            return
        with self._lock:
            self._sockets.add(sock)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def _check_online(self) -> None:
        from huggingface_hub.errors import OfflineModeIsEnabled

        if self._is_offline:
            raise OfflineModeIsEnabled("nothing is asked of the Hub")

    def _is_elsewhere(self, url: str) -> bool:
        from huggingface_hub import constants

        return _origin(url) != _origin(self._endpoint or constants.ENDPOINT)


def first_byte(answer: Any, start: int, size: int | None) -> int:
    """Tell which byte of the file the body of *answer* starts with: *start*, or 0 if the server sends all of it.

    Raises:
        BrokenOffError: if it is neither, or a part of another file.
    """
    if answer.status_code != 206:
        return 0
    told = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    fits = told is not None and int(told[1]) == start and (size is None or told[2] in ("*", str(size)))
    if not fits or answer.headers.get("Content-Encoding", "identity") != "identity":
        found = answer.headers.get("Content-Range")
        raise BrokenOffError(f"asked for the bytes from {start} of {size}, and got {found}")
    return start


def _etag(sibling: Any) -> str | None:
    """Return what the ETag of a listed file will be: the sha256 of one in LFS, else its git blob id."""
    sha256 = getattr(sibling.lfs, "sha256", None)
    etag = sha256 or sibling.blob_id
    return etag if isinstance(etag, str) else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
