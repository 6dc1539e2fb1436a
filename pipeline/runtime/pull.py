"""Pulls a model as `ollama pull` does (server/download.go): the same requests, the same parts, every blob hashed.

What Ollama asks of a registry is more than the distribution specification says: a blob's GET without Range must name a
Location, and parts come from there, without a login.  What Ollama cannot do is to send a login of Docker's: a registry
that wants one to be read is pulled from with the login that the caller has, and that is told.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from pipeline.errors import AccessError, FormatError
from pipeline.runtime.web import session

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

Login = Callable[[str], str | None]

_PART_LEAST, _PART_MOST, _PARTS = 100_000_000, 1_000_000_000, 16
_MAX_MANIFEST = 4 << 20
_MAX_HOPS = 10
_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMEOUT_S = (10.0, 60.0)  # to connect, between two pieces


@dataclass(frozen=True)
class Pulled:
    """What came: the *manifest* as it is served, and the file of each blob by its digest, in the manifest's order.

    *with_login* says that the registry wanted one.
    """

    manifest: bytes
    files: dict[str, Path]
    n_parts: int
    n_bytes: int
    with_login: bool = False


def pull(
    base: str,
    repository: str,
    tag: str,
    folder: Path,
    progress: Callable[[int, int], object] = lambda _done, _all: None,
    login: Login = lambda _challenge: None,
) -> Pulled:
    """Fetch the model *repository*:*tag* of the registry at *base* ("http://host:port") into *folder*.

    *progress* gets the bytes that are done and all there are.  *login* turns a WWW-Authenticate header of the registry,
    and of nobody else, into the Authorization to send, or None.

    Raises:
        AccessError: if the registry does not answer as Ollama needs it.
        FormatError: if a blob is not what its digest says, or the manifest is none.
    """
    with session(urlsplit(base).hostname or "") as http:
        puller = _Puller(http, f"{base.rstrip('/')}/v2/{repository}", folder, progress, login)
        try:
            return puller.pull(tag)
        except requests.RequestException as error:
            raise AccessError("the registry does not answer", where=base, found=error, hint="is it running?") from error


class _Puller:
    def __init__(
        self, http: requests.Session, url: str, folder: Path, progress: Callable[[int, int], object], login: Login
    ) -> None:
        self.http, self.url, self.folder, self.progress, self.login = http, url, folder, progress, login
        self.authorization: str | None = None
        self.done = self.total = self.parts = 0

    def pull(self, tag: str) -> Pulled:
        answer = self._get(f"{self.url}/manifests/{tag}", {"Accept": MANIFEST})
        with answer:
            data = answer.raw.read(_MAX_MANIFEST + 1, decode_content=True)
        layers = dict(_layers(data, answer.url))
        self.total = sum(layers.values())
        files = {digest: self._blob(digest, size) for digest, size in layers.items()}
        return Pulled(data, files, self.parts, self.done, self.authorization is not None)

    def _blob(self, digest: str, size: int) -> Path:
        url = f"{self.url}/blobs/{digest}"
        head = self._send("HEAD", url, allow_redirects=True)
        if not head.ok or head.headers.get("Content-Length") != str(size):
            found = f"HEAD: {head.status_code}, Content-Length {head.headers.get('Content-Length')}"
            raise _refused(url, f"{found} for a blob of {size} bytes")
        direct, state = self._location(url), hashlib.sha256()
        path = self.folder / digest.replace(":", "-")
        part = min(max(size // _PARTS, _PART_LEAST), _PART_MOST)
        with path.open("wb") as file:
            for start in range(0, size, part):
                for piece in self._part(direct, start, min(start + part, size) - 1):
                    state.update(piece)
                    file.write(piece)
        if f"sha256:{state.hexdigest()}" != digest:
            found = f"sha256:{state.hexdigest()}"
            raise FormatError("a blob is not what its digest says", where=url, expected=digest, found=found)
        return path

    def _location(self, url: str) -> str:
        """Find where the parts come from: redirects to the same host are followed, another host is taken at once."""
        for _ in range(_MAX_HOPS):
            with self._send("GET", url, allow_redirects=False) as answer:
                place = answer.headers.get("Location")
                if answer.status_code not in (200, 307) or place is None:
                    raise _refused(url, f"GET: {answer.status_code}, Location {place}")
            there = urljoin(url, place)
            if answer.status_code == 200 or urlsplit(there).hostname != urlsplit(url).hostname:
                return there
            url = there
        raise _refused(url, f"more than {_MAX_HOPS} redirects")

    def _part(self, url: str, first: int, last: int) -> Iterator[bytes]:
        self.parts += 1
        with self._get(url, {"Range": f"bytes={first}-{last}"}) as answer:
            left = last + 1 - first
            for piece in answer.iter_content(_CHUNK):
                taken = piece[:left]  # a server that knows no ranges sends all; its bytes are then the wrong ones
                left -= len(taken)
                self.done += len(taken)
                self.progress(self.done, self.total)
                yield taken
                if not left:
                    return
            raise _refused(url, f"bytes {first} to {last}: {left} are missing")

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        answer = self._send("GET", url, headers)
        if not answer.ok:
            answer.close()
            raise _refused(url, f"GET: {answer.status_code}")
        return answer

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, *, allow_redirects: bool = True
    ) -> requests.Response:
        """Send a request, and once more with a login if the registry itself asks for one."""
        is_registry = urlsplit(url)[:2] == urlsplit(self.url)[:2]
        while True:
            login = {"Authorization": self.authorization} if is_registry and self.authorization else {}
            answer = self.http.request(
                method, url, headers={**(headers or {}), **login},
                timeout=_TIMEOUT_S, stream=True, allow_redirects=allow_redirects,
            )  # fmt: skip
            if answer.status_code != 401 or not is_registry:
                return answer
            found = self.login(answer.headers.get("WWW-Authenticate", ""))
            if found is None or found == self.authorization:
                return answer
            answer.close()
            self.authorization = found


def _layers(data: bytes, where: str) -> Iterator[tuple[str, int]]:
    """List digest and size of every layer, then of the config."""
    try:
        tree: Any = json.loads(data) if len(data) <= _MAX_MANIFEST else None
        for layer in (*tree["layers"], tree["config"]):
            digest, size = str(layer["digest"]), int(layer["size"])
            if not _DIGEST.fullmatch(digest) or size < 0:  # it will be a file's name
                raise ValueError(digest)
            yield digest, size
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError("is no manifest", where=where, found=data[:80]) from error


def _refused(url: str, found: str) -> AccessError:
    return AccessError(
        "the registry's answer is not what `ollama pull` needs",
        where=url,
        expected="200, with Content-Length, Location (on blobs) and ranges",
        found=found,
    )
