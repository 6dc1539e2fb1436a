"""Errors as a registry answers them: a status and `{"errors": [{"code", "message", "detail"}]}`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from pipeline.errors import PipelineError, ResourceError, from_os_error

_LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CODES = {404: "NOT_FOUND", 405: "UNSUPPORTED", 413: "SIZE_INVALID", 500: "UNKNOWN"}


class RegistryError(Exception):
    """An answer other than success, in the registry's own words; *code* is one of the OCI distribution-spec's."""

    def __init__(
        self, status: int, code: str, message: str, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.detail, self.headers = status, code, message, detail, headers

    def response(self) -> web.Response:
        """Make the answer."""
        body = {"errors": [{"code": self.code, "message": self.message, "detail": self.detail}]}
        return web.json_response(body, status=self.status, headers=self.headers)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put every error into the registry's JSON; what the user of a client can not mend is logged here."""
    try:
        return await handler(request)
    except RegistryError as exc:
        return exc.response()
    except web.HTTPException as exc:
        allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else None
        return RegistryError(exc.status, _CODES.get(exc.status, "UNKNOWN"), exc.reason, request.path, allow).response()
    except (PipelineError, OSError) as exc:
        error = from_os_error(exc) if isinstance(exc, OSError) else exc
        if isinstance(error, ResourceError):
            _LOG.warning("%s %s: %s", request.method, request.path, error)
            return RegistryError(507, "DENIED", f"{error.what} at the registry", error.found).response()
        _LOG.exception("%s %s", request.method, request.path)
        return RegistryError(500, "UNKNOWN", "the store can not be read or written").response()
