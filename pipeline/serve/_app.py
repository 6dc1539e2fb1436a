"""The registry's HTTP side (docker registry v2 API, OCI distribution-spec): what every request goes through."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import AsyncIterator

from aiohttp import web

from pipeline.serve import _page, _reading, _writing
from pipeline.serve._access import GRANT_S, Access, challenge, signer
from pipeline.serve._answers import Handler, RegistryError, answer_errors
from pipeline.serve._settings import ACCESS, HOST, SETTINGS, STORE, UPLOADS, Settings
from pipeline.serve._uploads import Uploads
from pipeline.store import LOCAL_HOST, Store, manifest

_HOST_HEADER = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(:[0-9]+)?")
_READING = ("GET", "HEAD")
_REPOSITORY = "/v2/{namespace}/{model}"
_SWEEP_S = 60.0


def make_app(store: Store, host: str = LOCAL_HOST, settings: Settings | None = None) -> web.Application:
    """Make the application that serves the models under *host* of *store*, as they are at each request.

    Unless the settings allow other machines, requests must name this machine in their Host header: a web page whose
    name was made to point at 127.0.0.1 (DNS rebinding) would name its own.
    """
    settings = settings or Settings()
    middlewares = [_add_headers, answer_errors, _check_host, _check_access]
    app = web.Application(middlewares=middlewares, client_max_size=manifest.MAX_BYTES)
    app[STORE], app[HOST], app[SETTINGS], app[UPLOADS] = store, host, settings, Uploads(store)
    app[_page.REPORTS] = _page.Reports()
    app.on_response_prepare.append(_finish_headers)
    app.add_routes([web.get("/", _page.page), *_reading.routes(_REPOSITORY)])
    if settings.token is not None:
        app[ACCESS] = Access(settings.token, settings.ollama_keys)
        app.add_routes([web.get("/token", _grant), *_writing.routes(_REPOSITORY)])
    app.cleanup_ctx.append(_sweeping)
    return app


async def _sweeping(app: web.Application) -> AsyncIterator[None]:
    """Drop uploads that nobody goes on with, as long as the server runs; at its end, drop all."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            app[UPLOADS].drop_idle()

    task = asyncio.create_task(sweep())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    app[UPLOADS].close()
    demand = app[SETTINGS].on_demand
    if demand is not None:
        await demand.close()


async def _grant(request: web.Request) -> web.Response:
    """Give a token for an hour to whoever proves, with the token or an allowed key, that they may write."""
    authorization = request.headers.get("Authorization", "")
    query = {key: request.query[key] for key in request.query}
    url = f"{request.scheme}://{request.host}{request.raw_path}"
    token = await asyncio.to_thread(request.app[ACCESS].exchange, authorization, url, query)
    if token is not None:
        return web.json_response({"token": token, "access_token": token, "expires_in": GRANT_S})
    line = signer(authorization)
    if line is not None:
        keys = request.app[SETTINGS].ollama_keys
        message = f"this Ollama may not push: its key is not in {keys}, its clock is wrong, or the request is old"
        raise RegistryError(403, "DENIED", message, f"the line to add: {line}")
    headers = {"WWW-Authenticate": 'Basic realm="gguf-pipeline"'}
    raise RegistryError(401, "UNAUTHORIZED", "the password is the registry's token", None, headers)


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address without brackets and port, can only mean this machine."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@web.middleware
async def _check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request that was not meant for this machine by name, and a Host that is no name at all."""
    named = request.headers.get("Host", "")
    found = _HOST_HEADER.fullmatch(named)
    is_ours = found is not None and is_loopback(found["v6"] or found["name"])
    if found is None or not (is_ours or request.app[SETTINGS].allow_remote):
        message = "this registry answers to localhost alone; serve it with --allow-remote for other names"
        raise RegistryError(403, "DENIED", message, named)
    return await handler(request)


@web.middleware
async def _check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let everybody read, and those write who may."""
    settings = request.app[SETTINGS]
    is_write = request.method not in _READING or "upload" in request.match_info
    if not is_write:
        return await handler(request)
    if settings.token is None:
        allow = {"Allow": ", ".join(_READING)}
        raise RegistryError(405, "UNSUPPORTED", "this registry is read-only", request.method, allow)
    if request.match_info.http_exception is not None:
        return await handler(request)  # no such address, or not with this method
    if not settings.remote_writes and not is_loopback(request.remote or ""):
        message = "this registry is read-only for other machines; serve it with --allow-remote-writes"
        raise RegistryError(403, "DENIED", message, request.remote)
    repository = _reading.requested_name(request, "latest").repository  # it goes into a header
    if not request.app[ACCESS].allows(request.headers.get("Authorization", ""), repository):
        realm = f"{request.scheme}://{request.host}/token"
        headers = {"WWW-Authenticate": challenge(realm, repository)}
        raise RegistryError(401, "UNAUTHORIZED", "writing needs the registry's token", repository, headers)
    return await handler(request)


@web.middleware
async def _add_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add what every answer has."""
    response = await handler(request)
    response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


async def _finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set a blob's headers last, because a file's answer sets an ETag of its own, from its time."""
    if not isinstance(response, web.FileResponse):
        return
    response.headers["ETag"] = f'"{response.headers["Docker-Content-Digest"]}"'
    if response.status == 200:
        # `ollama pull` fails on a blob without it: it asks once, and fetches the parts from where Location points
        response.headers["Location"] = request.path
