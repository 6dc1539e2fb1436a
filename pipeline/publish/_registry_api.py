"""A registry's own terms (OCI distribution spec 1.1, docker's manifests): what is there, and what is made visible."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from pipeline.errors import AccessError, PipelineError
from pipeline.publish._refusals import Answer, refusal
from pipeline.publish._wire import Request, TransientError, Wire
from pipeline.store import Name
from pipeline.store.manifest import MANIFEST
from pipeline.types import Blob

_ACCEPT = {"Accept": MANIFEST}
_SOURCES = 20  # repositories that are asked for a blob


class RegistryApi:
    """The registry at the other end of *wire*; a *repository* is "namespace/model"."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def ping(self) -> None:
        """See that a registry answers.

        Raises:
            AccessError: if nobody does, or somebody else.
        """
        try:
            answer = self.wire.send(Request("GET", "/v2/"))
        except TransientError as error:
            if error.is_absent:
                raise error.final from error
            answer = self.wire.ask(Request("GET", "/v2/"))
        speaks = "Docker-Distribution-Api-Version" in answer.headers or answer.body.strip() in (b"{}", b"")
        if answer.status in (200, 401) and speaks:
            return
        hint = "check the address: it has no path"
        if b"HTTPS server" in answer.body:
            hint = f"it speaks TLS: --to {self.wire.base.replace('http', 'https', 1)}"
        raise AccessError("no registry answers there", where=answer.url, found=answer.said, hint=hint)

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """Return the bytes of a manifest by tag or digest, or None."""
        answer = self.wire.ask(Request("GET", f"/v2/{repository}/manifests/{reference}", _ACCEPT))
        return None if answer.status == 404 else _expect(answer, 200).body

    def put_manifest(self, repository: str, tag: str, data: bytes) -> None:
        """Make a manifest visible under a tag, in these very bytes."""
        headers = {"Content-Type": MANIFEST}
        answer = self.wire.ask(Request("PUT", f"/v2/{repository}/manifests/{tag}", headers, lambda: data))
        _expect(answer, 201, 200, 202)

    def delete_manifest(self, repository: str, reference: str) -> bool:
        """Remove a tag, or a manifest with all its tags; False if the registry does not do that."""
        answer = self.wire.ask(Request("DELETE", f"/v2/{repository}/manifests/{reference}"))
        return answer.status in (200, 202, 204, 404)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return the size of a blob, or None if the repository has none of this digest."""
        answer = self.wire.ask(Request("HEAD", f"/v2/{repository}/blobs/{digest}"))
        if answer.status == 404:
            return None
        length = _expect(answer, 200).headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() else None

    def blob_bytes(self, repository: str, digest: str) -> bytes:
        """Return a small blob."""
        return _expect(self.wire.ask(Request("GET", f"/v2/{repository}/blobs/{digest}")), 200).body

    def start(self, repository: str) -> str:
        """Begin an upload and return its address."""
        answer = self.wire.ask(Request("POST", f"/v2/{repository}/blobs/uploads/"))
        return self.next_address(_expect(answer, 202), f"/v2/{repository}/blobs/uploads/")

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Take a blob over from another repository; False if the registry wants to be sent the bytes."""
        query = f"?mount={digest}&from={source}"
        answer = self.wire.ask(Request("POST", f"/v2/{repository}/blobs/uploads/{query}"))
        if answer.status == 202:
            self.cancel(self.next_address(answer, ""))
        return answer.status == 201

    def next_address(self, answer: Answer, default: str) -> str:
        """Return where an upload goes on."""
        location = answer.headers.get("Location")
        return self.wire.resolve(answer.url, location) if location else default

    def cancel(self, upload: str) -> None:
        """Give an upload up; a registry that does not know that forgets it after a while."""
        try:
            self.wire.send(Request("DELETE", upload))
        except (TransientError, PipelineError):
            return

    def find_elsewhere(self, repository: str, blob: Blob) -> str | None:
        """Return another repository that has a blob, among those that the registry lists, the likeliest first."""
        answer = self.wire.ask(Request("GET", "/v2/_catalog?n=1000"))
        own = set(repository.split("/"))
        others = [name for name in _names(answer) if name != repository]
        others.sort(key=lambda name: -len(own & set(name.split("/"))))
        return next((name for name in others[:_SOURCES] if self._has(name, blob)), None)

    def _has(self, repository: str, blob: Blob) -> bool:
        try:
            return self.blob_size(repository, blob.digest) == blob.size
        except AccessError:
            return False  # not ours to read


class Reader:
    """A registry, as `read_back` reads it; a blob that several names share is asked for once."""

    def __init__(self, api: RegistryApi) -> None:
        self._api = api
        self._size = cache(api.blob_size)
        self._bytes = cache(api.blob_bytes)

    def manifest_bytes(self, name: Name) -> bytes:
        """Return a manifest; see `Readable`."""
        return self._api.manifest(name.repository, name.tag) or b""

    def blob_size(self, name: Name, digest: str) -> int | None:
        """Return the size of a blob; see `Readable`."""
        return self._size(name.repository, digest)

    def blob_bytes(self, name: Name, blob: Blob) -> bytes:
        """Return a blob; see `Readable`."""
        return self._bytes(name.repository, blob.digest)


def _names(answer: Answer) -> Sequence[str]:
    """Return the repositories that a catalog lists; many registries list none."""
    try:
        listed = json.loads(answer.body)["repositories"] if answer.status == 200 else []
        return [name for name in listed if isinstance(name, str)]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []


def _expect(answer: Answer, *statuses: int) -> Answer:
    if answer.status not in statuses:
        raise refusal(answer)
    return answer
