"""The writing half: uploads (mounted, in one piece, in many), manifests, deletions.

The rules are the OCI distribution-spec's for image manifests and sha256.  A manifest is taken when all its blobs are
there, and kept byte for byte; names obey Ollama's rules and the registries' (`store.names`).
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import StreamReader, web
from aiohttp.web import RequestPayloadError

from pipeline import data
from pipeline.errors import AccessError, FormatError, UsageError
from pipeline.serve._answers import RegistryError
from pipeline.serve._reading import requested_digest, requested_name, tagged, untagged
from pipeline.serve._settings import HOST, SETTINGS, STORE, UPLOADS
from pipeline.serve._uploads import MAX_OPEN, Upload
from pipeline.store import Manifest, Name, Store, remove_blob, untag
from pipeline.store.manifest import is_digest

_PIECE_BYTES = 1 << 20  # handed to the disk at once
_SPARE_BYTES = 64 << 20  # left free on the disk
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


def routes(repository: str) -> list[web.RouteDef]:
    """Return the routes of this half; *repository* is the pattern of a repository's path."""
    upload = f"{repository}/blobs/uploads/{{upload}}"
    return [
        web.post(f"{repository}/blobs/uploads", _begin),
        web.post(f"{repository}/blobs/uploads/", _begin),
        web.patch(upload, _continue),
        web.put(upload, _finish),
        web.get(upload, _status, allow_head=False),
        web.delete(upload, _cancel),
        web.put(f"{repository}/manifests/{{reference}}", _put_manifest),
        web.delete(f"{repository}/manifests/{{reference}}", _delete_manifest),
        web.delete(f"{repository}/blobs/{{digest}}", _delete_blob),
    ]


async def _begin(request: web.Request) -> web.Response:
    """Begin an upload; or be done at once, with a blob that is there ("mount") or that is the body ("digest")."""
    name, store = _strict_name(request, "latest"), request.app[STORE]
    mounted = request.query.get("mount", "")
    if is_digest(mounted) and await asyncio.to_thread(store.has, mounted):
        return _created(request, name, mounted)
    digest = requested_digest(request.query["digest"]) if "digest" in request.query else None
    if request.query.get("digest-algorithm", "sha256") != "sha256":
        raise RegistryError(400, "DIGEST_INVALID", "digests are sha256 here", request.query["digest-algorithm"])
    uploads = request.app[UPLOADS]
    upload = await asyncio.to_thread(uploads.begin, name.repository)
    if upload is None:
        message = f"{MAX_OPEN} uploads are open; try again later"
        raise RegistryError(429, "TOOMANYREQUESTS", message, None, {"Retry-After": "60"})
    if digest is None:
        return web.Response(status=202, headers=_place(request, name, upload, 0))
    try:
        return await _complete(request, name, upload, digest)
    finally:
        await asyncio.to_thread(uploads.end, upload)


async def _continue(request: web.Request) -> web.Response:
    name, key, upload = _upload(request)
    async with _held(upload, key):
        await _receive(request, name, key, upload)
        return web.Response(status=202, headers=_place(request, name, key, upload.size))


async def _finish(request: web.Request) -> web.Response:
    name, key, _ = _upload(request)
    return await _complete(request, name, key, requested_digest(request.query.get("digest", "")))


async def _complete(request: web.Request, name: Name, key: str, digest: str) -> web.Response:
    """Take the last piece, if the body has one, and make the upload a blob."""
    upload = request.app[UPLOADS].find(key, name.repository)
    if upload is None:
        raise _unknown(key)
    async with _held(upload, key):
        await _receive(request, name, key, upload)
        try:
            await asyncio.to_thread(upload.commit, digest)
        except FormatError as exc:
            raise RegistryError(
                400, "DIGEST_INVALID", exc.what, {"expected": exc.expected, "found": exc.found}
            ) from exc
        finally:
            request.app[UPLOADS].end(key)
    return _created(request, name, digest)


async def _status(request: web.Request) -> web.Response:
    name, key, upload = _upload(request)
    return web.Response(status=204, headers=_place(request, name, key, upload.size))


async def _cancel(request: web.Request) -> web.Response:
    _, key, upload = _upload(request)
    async with _held(upload, key):
        await asyncio.to_thread(request.app[UPLOADS].end, key)
    return web.Response(status=204)


async def _put_manifest(request: web.Request) -> web.Response:
    reference = request.match_info["reference"]
    by_digest = ":" in reference
    name = _strict_name(request, "latest" if by_digest else reference)
    try:
        async with asyncio.timeout(request.app[SETTINGS].stall_s):
            body = await request.read()
    except TimeoutError as exc:
        raise RegistryError(408, "MANIFEST_INVALID", "the manifest did not come in time") from exc
    if by_digest:
        requested_digest(reference)
    digest = await asyncio.to_thread(_write_manifest, request, name, body, reference if by_digest else None)
    headers = {"Location": f"/v2/{name.repository}/manifests/{reference}", "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)


def _write_manifest(request: web.Request, name: Name, body: bytes, digest: str | None) -> str:
    """Check a manifest and keep it, under its tag or, with *digest*, by that alone; return its digest."""
    store = request.app[STORE]
    try:
        manifest = Manifest.from_bytes(body)
    except FormatError as exc:
        raise RegistryError(400, "MANIFEST_INVALID", f"not the manifest of a model: {exc.what}", exc.found) from exc
    stated = request.headers.get("Content-Type", "").partition(";")[0].strip() or manifest.media_type
    if stated != manifest.media_type:
        detail = {"Content-Type": stated, "mediaType": manifest.media_type}
        raise RegistryError(400, "MANIFEST_INVALID", "the manifest is of another type than was said", detail)
    with store.writing():
        _require_blobs(store, manifest)
        if digest is not None:
            found = store.add_bytes(body).digest
            if found != digest:
                raise RegistryError(400, "DIGEST_INVALID", "the manifest has another digest", found)
            return found
        try:
            return store.write_manifest_bytes(name, body)
        except UsageError as exc:
            raise RegistryError(400, "TAG_INVALID", exc.what, exc.found) from exc
        except AccessError:
            _require_blobs(store, manifest)  # another program removed one meanwhile
            raise


def _require_blobs(store: Store, manifest: Manifest) -> None:
    for layer in manifest.all_layers:
        blob = layer.blob
        if not store.has(blob.digest):
            raise RegistryError(400, "MANIFEST_BLOB_UNKNOWN", "push the blobs first", blob.digest)
        if not store.has(blob.digest, blob.size):
            raise RegistryError(400, "SIZE_INVALID", "a blob has another size", blob.digest)


async def _delete_manifest(request: web.Request) -> web.Response:
    """Delete one tag, or, by digest, every tag of the repository that has this manifest; blobs are left to `gc`."""
    reference, store = request.match_info["reference"], request.app[STORE]
    if ":" not in reference:
        name = requested_name(request, reference)
        names = [name] if store.manifest_path(name).is_file() else []
    else:
        digest, repository = requested_digest(reference), requested_name(request, "latest").repository
        names = await asyncio.to_thread(tagged, request.app, repository, digest)
        if await asyncio.to_thread(untagged, store, digest) is not None:
            await asyncio.to_thread(remove_blob, store, digest)
            if not names:
                return web.Response(status=202)
    if not names:
        raise RegistryError(404, "MANIFEST_UNKNOWN", "no such manifest", reference)
    await asyncio.to_thread(untag, store, names)
    return web.Response(status=202)


async def _delete_blob(request: web.Request) -> web.Response:
    digest = requested_digest(request.match_info["digest"])
    requested_name(request, "latest")
    try:
        if await asyncio.to_thread(remove_blob, request.app[STORE], digest):
            return web.Response(status=202)
    except UsageError as exc:
        raise RegistryError(409, "DENIED", f"{exc.what}; {exc.hint}", digest) from exc
    raise RegistryError(404, "BLOB_UNKNOWN", "no such blob", digest)


def _strict_name(request: web.Request, tag: str) -> Name:
    """Make the name that a write means, by the rules of Ollama and of all registries.

    Raises:
        RegistryError: 400 if it breaks them.
    """
    try:
        name = Name(request.app[HOST], request.match_info["namespace"], request.match_info["model"], tag)
        return Name.parse(str(name))
    except UsageError as exc:
        raise RegistryError(400, "NAME_INVALID", f"{exc.what}: {exc.expected}", exc.found) from exc


def _upload(request: web.Request) -> tuple[Name, str, Upload]:
    name, key = requested_name(request, "latest"), request.match_info["upload"]
    upload = request.app[UPLOADS].find(key, name.repository)
    if upload is None:
        raise _unknown(key)
    return name, key, upload


@asynccontextmanager
async def _held(upload: Upload, key: str) -> AsyncIterator[None]:
    """Have an upload alone; it may have ended while another request had it."""
    async with upload.lock:
        if upload.closed:
            raise _unknown(key)
        yield


def _unknown(key: str) -> RegistryError:
    return RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; begin again", key)


async def _receive(request: web.Request, name: Name, key: str, upload: Upload) -> None:
    """Add the body to an upload, all of it or, after an error, nothing.

    Raises:
        RegistryError: 416 if it is not the next piece, 507 if the disk is too small for it, 408 if it stops coming.
    """
    if not request.body_exists:
        return
    length = request.content_length
    _require_next(request, name, key, upload, length)
    free = shutil.disk_usage(data.nearest_existing(upload.store.blobs_dir)).free
    if length is not None and length + _SPARE_BYTES > free:
        raise RegistryError(507, "DENIED", "the registry's disk is too small", {"free": free, "needed": length})
    mark = upload.mark()
    done = False
    try:
        async for piece in _pieces(request.content, request.app[SETTINGS].stall_s):
            await asyncio.to_thread(upload.append, piece)
        done = True
    except TimeoutError as exc:
        raise RegistryError(408, "BLOB_UPLOAD_INVALID", "no more came; send this piece again") from exc
    except (RequestPayloadError, ConnectionError) as exc:
        raise RegistryError(400, "BLOB_UPLOAD_INVALID", "the connection broke; send this piece again") from exc
    finally:
        if not done:
            upload.rewind(mark)


def _require_next(request: web.Request, name: Name, key: str, upload: Upload, length: int | None) -> None:
    text = request.headers.get("Content-Range")
    if text is None:
        return
    found = _RANGE.fullmatch(text)
    if found is None:
        raise RegistryError(400, "BLOB_UPLOAD_INVALID", "Content-Range is FIRST-LAST", text[:80])
    first, last = int(found[1]), int(found[2])
    if first != upload.size or last < first or (length is not None and last - first + 1 != length):
        message, headers = "not the piece that comes next", _place(request, name, key, upload.size)
        raise RegistryError(416, "BLOB_UPLOAD_INVALID", message, text, headers)


async def _pieces(content: StreamReader, stall_s: float) -> AsyncIterator[bytes]:
    """Give a body in pieces that are worth a write; each part of it must come within *stall_s* seconds."""
    piece = bytearray()
    while True:
        async with asyncio.timeout(stall_s):
            part = await content.readany()
        piece += part
        if piece and (not part or len(piece) >= _PIECE_BYTES):
            yield bytes(piece)
            piece.clear()
        if not part:
            return


def _created(request: web.Request, name: Name, digest: str) -> web.Response:
    headers = {"Location": _absolute(request, f"/v2/{name.repository}/blobs/{digest}"), "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)


def _place(request: web.Request, name: Name, key: str, size: int) -> dict[str, str]:
    """Say where an upload goes on.  Location is absolute: `ollama push` takes it as it is."""
    return {
        "Location": _absolute(request, f"/v2/{name.repository}/blobs/uploads/{key}"),
        "Range": f"0-{max(size - 1, 0)}",
        "Docker-Upload-UUID": key,
    }


def _absolute(request: web.Request, path: str) -> str:
    return f"{request.scheme}://{request.host}{path}"
