"""Blobs on their way in: each upload is one staging file of the store, hashed while it grows.

Nothing of it is a blob before the whole has the promised digest; then it is renamed.  A piece counts whole or not at
all, so a client whose connection broke may send the same piece again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.errors import FormatError
from pipeline.store import Store
from pipeline.types import Blob

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_OPEN = 64  # uploads at a time
IDLE_S = 1800.0  # an upload that nobody has added to for this long is dropped

Mark = tuple[int, "_Hash"]


class Upload:
    """One upload into *store* for *repository*; *size* counts the bytes that are in.  Hold *lock* to change it."""

    def __init__(self, store: Store, repository: str) -> None:
        self.store = store
        self.repository = repository
        self.size = 0
        self.lock = asyncio.Lock()
        self.used = 0.0
        self._state = hashlib.sha256()
        self._stack = ExitStack()
        self._path = self._stack.enter_context(store.blob_writer())
        self._file = self._stack.enter_context(self._path.open("wb", buffering=0))

    @property
    def closed(self) -> bool:
        """Whether it has ended, as a blob or as nothing."""
        return self._file.closed

    def mark(self) -> Mark:
        """Remember where the upload stands."""
        return self.size, self._state.copy()

    def append(self, data: bytes) -> None:
        """Add *data* at the end.

        Raises:
            OSError: if the disk refuses.
        """
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._state.update(data)
        self.size += len(data)

    def rewind(self, mark: Mark) -> None:
        """Take away what came after *mark*."""
        if self.closed:
            return
        self.size, self._state = mark
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def commit(self, digest: str) -> Blob:
        """Make it the blob *digest*, and end the upload.

        Raises:
            FormatError: if its bytes have another digest; the upload has ended then, too.
            ResourceError, AccessError: if the disk refuses.
        """
        try:
            found = f"sha256:{self._state.hexdigest()}"
            if found != digest:
                raise FormatError("what came has another digest", expected=digest, found=found)
            return self.store.commit_file(self._path, digest)
        finally:
            self.close()

    def close(self) -> None:
        """Drop what is there."""
        self._stack.close()


class Uploads:
    """The uploads of one server, by their id; *clock* gives seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._open: dict[str, Upload] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, repository: str) -> str | None:
        """Begin an upload and return its id; None if too many are open."""
        if len(self._open) >= MAX_OPEN:
            return None
        upload = Upload(self._store, repository)
        upload.used = self._clock()
        name = uuid.uuid4().hex
        self._open[name] = upload
        return name

    def find(self, name: str, repository: str) -> Upload | None:
        """Return an open upload of *repository*, and count this as use of it."""
        upload = self._open.get(name)
        if upload is None or upload.repository != repository:
            return None
        upload.used = self._clock()
        return upload

    def end(self, name: str) -> None:
        """Drop an upload, if it is open."""
        upload = self._open.pop(name, None)
        if upload is not None:
            upload.close()

    def drop_idle(self) -> int:
        """Drop the uploads that nobody has used for `IDLE_S`; return how many."""
        limit = self._clock() - IDLE_S
        # a copy, because uploads begin in threads
        old = [name for name, one in list(self._open.items()) if one.used < limit and not one.lock.locked()]
        for name in old:
            self.end(name)
        return len(old)

    def close(self) -> None:
        """Drop all."""
        for name in list(self._open):
            self.end(name)
