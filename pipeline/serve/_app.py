"""The registry's HTTP side (docker registry v2 API, reading half).

A request names "namespace/model" and no host, so one host folder of the store is served: `LOCAL_HOST`, on any port.
Blobs are found by digest alone: whoever knows the digest may have the blob under any valid repository name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from pipeline.errors import PipelineError, UsageError
from pipeline.store import LOCAL_HOST, Name, Store, manifest
from pipeline.store.blobs import hash_bytes

_LOG = logging.getLogger(__name__)
_STORE: web.AppKey[Store] = web.AppKey("store", Store)
_HOST: web.AppKey[str] = web.AppKey("host", str)

_HOST_HEADER = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(:[0-9]+)?")
_READING = ("GET", "HEAD")
_CODES = {404: "NOT_FOUND", 405: "UNSUPPORTED", 500: "UNKNOWN"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _RegistryError(Exception):
    """An answer other than 200, in the registry's own words."""

    def __init__(self, status: int, code: str, message: str, detail: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.detail = status, code, message, detail


def make_app(store: Store, host: str = LOCAL_HOST, *, allow_remote: bool = False) -> web.Application:
    """Make the application that serves the models under *host* of *store*, as they are at each request.

    Without *allow_remote*, requests must name this machine in their Host header: a web page whose name was made to
    point at 127.0.0.1 (DNS rebinding) would name its own.
    """
    app = web.Application(middlewares=[_answer] if allow_remote else [_refuse_other_names, _answer])
    app[_STORE], app[_HOST] = store, host
    app.on_response_prepare.append(_add_headers)
    repository = "/v2/{namespace}/{model}"
    app.add_routes(
        [
            web.get("/v2", _ping),
            web.get("/v2/", _ping),
            web.get("/v2/_catalog", _catalog),
            web.get(f"{repository}/tags/list", _tags),
            web.get(f"{repository}/manifests/{{reference}}", _manifest),
            web.get(f"{repository}/blobs/{{digest}}", _blob),
        ]
    )
    return app


async def _ping(_: web.Request) -> web.Response:
    return web.json_response({})


async def _catalog(request: web.Request) -> web.Response:
    names = await asyncio.to_thread(_served, request.app)
    return web.json_response({"repositories": sorted({name.repository for name in names})})


async def _tags(request: web.Request) -> web.Response:
    name = _name(request, "latest")
    tags = [other.tag for other in await asyncio.to_thread(_served, request.app, name.repository)]
    if not tags:
        raise _RegistryError(404, "NAME_UNKNOWN", "no such model", name.repository)
    return web.json_response({"name": name.repository, "tags": sorted(tags)})


async def _manifest(request: web.Request) -> web.Response:
    data = await asyncio.to_thread(_find_manifest, request)
    digest = hash_bytes(data).digest
    return web.Response(
        body=data,
        headers={"Content-Type": manifest.MANIFEST, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'},
    )


async def _blob(request: web.Request) -> web.FileResponse:
    _name(request, "latest")
    store, digest = request.app[_STORE], request.match_info["digest"]
    if not manifest.is_digest(digest):
        raise _RegistryError(400, "DIGEST_INVALID", "not a digest", digest)
    if not await asyncio.to_thread(store.has, digest):
        raise _RegistryError(404, "BLOB_UNKNOWN", "no such blob", digest)
    headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
    return web.FileResponse(store.blob_path(digest), headers=headers)


def _find_manifest(request: web.Request) -> bytes:
    """Return a manifest's bytes by tag or by digest."""
    store, reference = request.app[_STORE], request.match_info["reference"]
    if manifest.is_digest(reference):
        repository = _name(request, "latest").repository
        for name in _served(request.app, repository):
            data = store.manifest_bytes(name)
            if hash_bytes(data).digest == reference:
                return data
    else:
        name = _name(request, reference)
        if store.manifest_path(name).is_file():
            return store.manifest_bytes(name)
    raise _RegistryError(404, "MANIFEST_UNKNOWN", "no such manifest", reference)


def _served(app: web.Application, repository: str | None = None) -> list[Name]:
    """List the models of the host folder that is served, or of one *repository* in it."""
    names = [entry.name for entry in app[_STORE].list() if entry.name.host == app[_HOST]]
    return [name for name in names if repository in (None, name.repository)]


def _name(request: web.Request, tag: str) -> Name:
    """Make the name that a path means; a valid name can not lead out of the store."""
    try:
        return Name(request.app[_HOST], request.match_info["namespace"], request.match_info["model"], tag)
    except UsageError as exc:
        raise _RegistryError(404, "NAME_INVALID", exc.what, exc.found) from exc


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address without brackets and port, can only mean this machine."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@web.middleware
async def _refuse_other_names(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Refuse a request that was not meant for this machine by name."""
    named = request.headers.get("Host", "")
    found = _HOST_HEADER.fullmatch(named)
    if found is None or not is_loopback(found["v6"] or found["name"]):
        message = "this registry answers to localhost alone; serve it with --allow-remote for other names"
        return _error(403, "DENIED", message, named)
    return await handler(request)


@web.middleware
async def _answer(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer reading methods, refuse the others, and put every error into the registry's JSON."""
    if request.method not in _READING:
        return _error(405, "UNSUPPORTED", "this registry is read-only", request.method, {"Allow": ", ".join(_READING)})
    try:
        return await handler(request)
    except _RegistryError as exc:
        return _error(exc.status, exc.code, exc.message, exc.detail)
    except web.HTTPException as exc:
        return _error(exc.status, _CODES.get(exc.status, "UNKNOWN"), exc.reason, request.path)
    except (PipelineError, OSError):
        _LOG.exception("%s %s", request.method, request.path)
        return _error(500, "UNKNOWN", "the store can not be read", None)


def _error(status: int, code: str, message: str, detail: Any, headers: dict[str, str] | None = None) -> web.Response:
    body = {"errors": [{"code": code, "message": message, "detail": detail}]}
    return web.json_response(body, status=status, headers=headers)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer has; last, because a file's answer sets an ETag of its own, from its time."""
    response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
    if not isinstance(response, web.FileResponse):
        return
    response.headers["ETag"] = f'"{response.headers["Docker-Content-Digest"]}"'
    if response.status == 200:
        # `ollama pull` fails on a blob without it: it asks once, and fetches the parts from where Location points
        response.headers["Location"] = request.path
