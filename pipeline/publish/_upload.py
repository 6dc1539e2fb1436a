"""One blob on its way to a registry: whole, or in chunks; begun anew, or gone on with, after a broken connection."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.errors import AccessError
from pipeline.publish._body import Body, Sent
from pipeline.publish._refusals import Answer, refusal
from pipeline.publish._registry_api import RegistryApi
from pipeline.publish._wire import Request, TransientError, Tries
from pipeline.types import Blob

# What is larger goes in chunks: hosted proxies limit a body to 100 MB.
CHUNK_BYTES = 95 << 20

_COMMIT_BYTES_PER_SECOND = 20e6  # a registry may read all of it again before it answers
_OCTETS = "application/octet-stream"
_NO_CHUNKS = (400, 405, 411, 501)
_EXPIRED = (404, 416)
_RANGE = re.compile(r"(?:bytes[ =])?0-(\d+)")


@dataclass(frozen=True)
class Content:
    """A blob and where its bytes are; *open* opens them anew."""

    blob: Blob
    open: Callable[[], BinaryIO]


class Uploader:
    """Brings blobs into *repository*."""

    def __init__(self, api: RegistryApi, repository: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._api, self._repository, self._chunk_bytes = api, repository, chunk_bytes
        self._chunks_work = True

    def upload(self, content: Content, sent: Sent) -> None:
        """Upload one blob; each try begins with the question whether it is there by now.

        Raises:
            FormatError: if the bytes are not those of the digest; the registry then keeps nothing.
            AccessError, ResourceError: if the registry refuses, or can not be reached.
        """
        self._api.wire.insist(lambda: self._try(content, sent))

    def _try(self, content: Content, sent: Sent) -> None:
        blob = content.blob
        if self._api.blob_size(self._repository, blob.digest) == blob.size:
            sent(blob.size)
            return
        with content.open() as file:
            session = _Session(self._api, self._repository, file, blob, sent)
            if blob.size > self._chunk_bytes and self._chunks_work:
                self._chunks_work = session.in_chunks(self._chunk_bytes)
                if self._chunks_work:
                    return
                session = _Session(self._api, self._repository, file, blob, sent)
            session.whole()


class _Session:
    """One upload session of a registry."""

    def __init__(self, api: RegistryApi, repository: str, file: BinaryIO, blob: Blob, sent: Sent) -> None:
        self._api, self._file, self._blob, self._sent = api, file, blob, sent
        self._address = api.start(repository)
        self._at, self._state = 0, hashlib.sha256()  # what the registry has

    def whole(self) -> None:
        """Send all bytes in the request that commits them."""
        answer, _ = self._send("PUT", self._committing(), {"Content-Type": _OCTETS}, self._blob.size)
        self._check_commit(answer)

    def in_chunks(self, chunk_bytes: int) -> bool:
        """Send chunk by chunk; False if the registry takes no chunks."""
        tries = Tries(self._api.wire.patience)
        while self._at < self._blob.size:
            before = self._at
            try:
                if not self._chunk(min(before + chunk_bytes, self._blob.size)):
                    self._api.cancel(self._address)
                    return False
            except TransientError as error:
                tries.again(error)
                self._find_place(error)
            if self._at > before:
                tries.got_ahead()
        answer, _ = self._send("PUT", self._committing(), {}, self._at)
        self._check_commit(answer)
        return True

    def _chunk(self, stop: int) -> bool:
        """Send the next bytes; False if the registry takes no chunks."""
        headers = {"Content-Type": _OCTETS, "Content-Range": f"{self._at}-{stop - 1}"}
        answer, state = self._send("PATCH", self._address, headers, stop)
        if answer.status in _EXPIRED:
            raise TransientError(refusal(answer))
        if answer.status in _NO_CHUNKS:
            return False
        if answer.status not in (201, 202, 204):
            raise refusal(answer)
        self._address = self._api.next_address(answer, self._address)
        self._at, self._state = stop, state
        return True

    def _send(self, method: str, url: str, headers: dict[str, str], stop: int) -> tuple[Answer, hashlib._Hash]:
        """Send the bytes from here to *stop*; return the answer, and the sha256 of all bytes up to *stop*."""
        bodies: list[Body] = []

        def body() -> Body:
            bodies.append(Body(self._file, self._blob, self._at, stop, self._state.copy(), self._sent))
            return bodies[-1]

        seconds = 60 + self._blob.size / _COMMIT_BYTES_PER_SECOND
        request = Request(method, url, headers, body if stop > self._at else None, seconds)
        answer = self._api.wire.send(request)
        return answer, bodies[-1].state if bodies else self._state

    def _find_place(self, error: TransientError) -> None:
        """Ask how far the registry got, after a chunk that broke.

        Raises:
            TransientError: *error*, if the session is lost.
        """
        answer = self._api.wire.ask(Request("GET", self._address))
        told = _RANGE.fullmatch(answer.headers.get("Range", ""))
        at = int(told[1]) + 1 if told else 0
        if at == 1 and not self._at:
            at = 0  # "0-0" is also what an empty upload is said to have
        if answer.status != 204 or not self._at <= at <= self._blob.size:
            raise error
        self._address = self._api.next_address(answer, self._address)
        taken = Body(self._file, self._blob, self._at, at, self._state)
        while taken.read(CHUNK_BYTES):
            pass
        self._at = at

    def _committing(self) -> str:
        return f"{self._address}{'&' if '?' in self._address else '?'}digest={self._blob.digest}"

    def _check_commit(self, answer: Answer) -> None:
        """See that the registry kept the blob that was sent."""
        kept = answer.headers.get("Docker-Content-Digest", self._blob.digest)
        if answer.status in (201, 204) and kept == self._blob.digest:
            return
        if answer.status in _EXPIRED:
            raise TransientError(refusal(answer))
        if answer.status in (201, 204) or "DIGEST_INVALID" in answer.codes:
            raise TransientError(
                AccessError(
                    "the registry got other bytes than were sent",
                    where=answer.url,
                    expected=self._blob.digest,
                    found=answer.said,
                    hint="something between here and there changes bytes; try another network, or https",
                )
            )
        raise refusal(answer)
