"""The reading half: version check, lists, manifests, blobs.

A request names "namespace/model" and no host, so one host folder of the store is served: `LOCAL_HOST`, on any port.
Blobs are found by digest alone: whoever knows the digest may have the blob under any valid repository name.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from pipeline.errors import FormatError, UsageError
from pipeline.serve._answers import RegistryError
from pipeline.serve._settings import HOST, SETTINGS, STORE
from pipeline.store import Manifest, Name, Store, manifest
from pipeline.store.blobs import hash_bytes

_LOG = logging.getLogger(__name__)
_MAX_PAGE = 10_000


def routes(repository: str) -> list[web.RouteDef]:
    """Return the routes of this half; *repository* is the pattern of a repository's path."""
    return [
        web.get("/v2", ping),
        web.get("/v2/", ping),
        web.get("/v2/_catalog", _catalog),
        web.get(f"{repository}/tags/list", _tags),
        web.get(f"{repository}/manifests/{{reference}}", _manifest),
        web.get(f"{repository}/blobs/{{digest}}", _blob),
    ]


async def ping(_: web.Request) -> web.Response:
    """Say that this is a registry."""
    return web.json_response({})


async def _catalog(request: web.Request) -> web.Response:
    names = await asyncio.to_thread(served, request.app)
    page, headers = _page(request, sorted({name.repository for name in names}))
    return web.json_response({"repositories": page}, headers=headers)


async def _tags(request: web.Request) -> web.Response:
    name = requested_name(request, "latest")
    tags = [other.tag for other in await asyncio.to_thread(served, request.app, name.repository)]
    if not tags:
        raise RegistryError(404, "NAME_UNKNOWN", "no such model", name.repository)
    page, headers = _page(request, sorted(tags))
    return web.json_response({"name": name.repository, "tags": page}, headers=headers)


async def _manifest(request: web.Request) -> web.Response:
    data = await asyncio.to_thread(_find_manifest, request)
    if data is None and await _is_made(request):
        data = await asyncio.to_thread(_find_manifest, request)
    if data is None:
        raise RegistryError(404, "MANIFEST_UNKNOWN", "no such manifest", request.match_info["reference"])
    digest = hash_bytes(data).digest
    headers = {"Content-Type": _media_type(data), "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
    return web.Response(body=data, headers=headers)


async def _is_made(request: web.Request) -> bool:
    """Make what a GET asks for by tag, if this registry does so; only a look (HEAD) starts nothing."""
    demand, reference = request.app[SETTINGS].on_demand, request.match_info["reference"]
    if demand is None or request.method != "GET" or manifest.is_digest(reference):
        return False
    name = requested_name(request, reference)
    return await demand.make(name.repository, name.tag)


async def _blob(request: web.Request) -> web.FileResponse:
    requested_name(request, "latest")
    store, digest = request.app[STORE], requested_digest(request.match_info["digest"])
    if not await asyncio.to_thread(store.has, digest):
        raise RegistryError(404, "BLOB_UNKNOWN", "no such blob", digest)
    _end_if_nobody_reads(request)
    headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
    return _BlobResponse(store.blob_path(digest), headers=headers)


class _BlobResponse(web.FileResponse):
    """A file on its way out; a client that stops taking it is one that has gone."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            return await super().prepare(request)
        except TimeoutError as exc:
            _LOG.info("%s takes no more of %s", request.remote, request.path)
            raise ConnectionResetError(*exc.args) from exc


def _end_if_nobody_reads(request: web.Request) -> None:
    """Let the kernel end the connection if the client takes nothing for a while: the file goes out behind our back."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if option is not None and sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(1000 * request.app[SETTINGS].stall_s))


def _find_manifest(request: web.Request) -> bytes | None:
    """Return a manifest's bytes by tag or by digest, or None."""
    store, reference = request.app[STORE], request.match_info["reference"]
    if not manifest.is_digest(reference):
        name = requested_name(request, reference)
        return store.manifest_bytes(name) if store.manifest_path(name).is_file() else None
    for name in tagged(request.app, requested_name(request, "latest").repository, reference):
        return store.manifest_bytes(name)
    return untagged(store, reference)


def tagged(app: web.Application, repository: str, digest: str) -> list[Name]:
    """List the names in *repository* whose manifest has this digest."""
    entries = [entry for entry in app[STORE].list() if entry.digest == digest]
    return [entry.name for entry in entries if (entry.name.host, entry.name.repository) == (app[HOST], repository)]


def untagged(store: Store, digest: str) -> bytes | None:
    """Return the manifest that was pushed by this digest alone, as long as all that it names is there; else None.

    It lies among the blobs, so `gc` takes it, an hour after, together with what it names.
    """
    if not store.has(digest) or store.blob_path(digest).stat().st_size > manifest.MAX_BYTES:
        return None
    data = store.blob_path(digest).read_bytes()
    try:
        layers = Manifest.from_bytes(data).all_layers
    except FormatError:
        return None
    return data if all(store.has(layer.blob.digest, layer.blob.size) for layer in layers) else None


def served(app: web.Application, repository: str | None = None) -> list[Name]:
    """List the models of the host folder that is served, or of one *repository* in it."""
    names = [entry.name for entry in app[STORE].list() if entry.name.host == app[HOST]]
    return [name for name in names if repository in (None, name.repository)]


def requested_name(request: web.Request, tag: str) -> Name:
    """Make the name that a path means; a valid name can not lead out of the store.

    Raises:
        RegistryError: 404 if it is not valid.
    """
    try:
        return Name(request.app[HOST], request.match_info["namespace"], request.match_info["model"], tag)
    except UsageError as exc:
        raise RegistryError(404, "NAME_INVALID", exc.what, exc.found) from exc


def requested_digest(text: str) -> str:
    """Check a digest that a client named.

    Raises:
        RegistryError: 400 if it is none, or of another kind than sha256.
    """
    if not manifest.is_digest(text):
        raise RegistryError(400, "DIGEST_INVALID", "not a digest: sha256: and 64 hex digits", text)
    return text


def _media_type(data: bytes) -> str:
    try:
        return Manifest.from_bytes(data).media_type
    except FormatError:
        return manifest.MANIFEST  # a broken one that lies in the store is shown as it is


def _page(request: web.Request, items: list[str]) -> tuple[list[str], dict[str, str]]:
    """Cut what the query asks for with "n" and "last" out of sorted *items*; the header links to the next page."""
    last, text = request.query.get("last", ""), request.query.get("n")
    rest = [item for item in items if item > last]
    if text is None:
        return rest, {}
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_PAGE:
        raise RegistryError(400, "UNSUPPORTED", f"n is a number up to {_MAX_PAGE}", text)
    page = rest[: int(text)]
    if not page or len(page) == len(rest):
        return page, {}
    query = urlencode({"n": text, "last": page[-1]})
    return page, {"Link": f'<{request.path}?{query}>; rel="next"'}
