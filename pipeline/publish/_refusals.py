"""What a registry answers when it does not do what it was asked, in our words and with the next step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from pipeline.errors import AccessError, PipelineError, ResourceError, UsageError
from pipeline.publish._login import TOKEN_VARIABLE

_LOGIN = f"docker login {{host}}; or set {TOKEN_VARIABLE}; or write {{scheme}}://USER:PASSWORD@{{host}}"
_FULL = re.compile(r"no space left|disk quota|file too large|\"Err\":\s*28\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What came back; *url* has no query, which may be secret."""

    method: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def codes(self) -> frozenset[str]:
        """The registry's own error codes, such as BLOB_UPLOAD_UNKNOWN."""
        return frozenset(str(error.get("code")) for error in self._errors())

    @property
    def said(self) -> str:
        """The status with what the registry says about it, for people."""
        said = [
            " ".join(str(error[key]) for key in ("code", "message", "detail") if error.get(key))
            for error in self._errors()
        ]
        text = "; ".join(said) or self.body[:200].decode("utf-8", "replace")
        return " ".join(f"HTTP {self.status} {text}".split())[:400]

    def _errors(self) -> list[dict[str, object]]:
        try:
            errors = json.loads(self.body)["errors"]
            return [error for error in errors if isinstance(error, dict)]
        except (ValueError, RecursionError, KeyError, TypeError):
            return []


@dataclass(frozen=True)
class _Row:
    error: type[PipelineError]
    what: str
    hint: str


_ROWS = {
    401: _Row(AccessError, "the registry wants to know who you are", _LOGIN),
    403: _Row(AccessError, "the registry does not allow this", f"check the rights of this login; {_LOGIN}"),
    404: _Row(AccessError, "the registry does not know this", "check the address; some want a project made first"),
    405: _Row(AccessError, "the registry takes no models", "it is read-only: publish to another"),
    413: _Row(AccessError, "a body is too large", "raise the limit of the proxy in front (client_max_body_size)"),
    429: _Row(AccessError, "the registry asks to slow down", "publish again later; what has arrived is kept"),
    507: _Row(ResourceError, "the registry's disk is full", "free some space there, and publish again"),
}
_REFUSED = _Row(AccessError, "the registry refuses this", "see what it says; its log may tell more")
_TROUBLE = _Row(AccessError, "the registry is in trouble", "see its log, and publish again; what has arrived is kept")


def refusal(answer: Answer, where: str | None = None) -> PipelineError:
    """Say what an answer means that is not the one wanted; *where* is what it is about, by default the address."""
    row = _ROWS.get(answer.status, _TROUBLE if answer.status >= 500 else _REFUSED)
    if answer.status >= 500 and _FULL.search(answer.body[:10_000].decode("utf-8", "replace")):
        row = _ROWS[507]
    url = urlsplit(answer.url)
    hint = row.hint.format(scheme=url.scheme, host=url.netloc)
    return row.error(row.what, where=where or f"{answer.method} {answer.url}", found=answer.said, hint=hint)


def unreachable(base: str, error: Exception) -> AccessError:
    """Say that a registry did not answer."""
    if isinstance(error, requests.exceptions.ProxyError):
        return AccessError("the proxy refused", where=base, found=_short(error), hint="check HTTPS_PROXY and NO_PROXY")
    if is_absent(error):
        return AccessError(
            "nobody answers there",
            where=base,
            found=_short(error),
            hint="check the address, and that the registry runs",
        )
    if isinstance(error, requests.Timeout):
        what = "the registry did not answer in time"
    else:
        what = "the connection to the registry broke"
    return AccessError(what, where=base, found=_short(error), hint="publish again; what has arrived is kept")


def is_absent(error: Exception) -> bool:
    """Whether the connection was not even taken."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    names = {kind.__name__ for kind in type(reason).__mro__}
    return bool(names & {"NewConnectionError", "NameResolutionError"}) or isinstance(
        error, requests.exceptions.ConnectTimeout
    )


def untrusted(base: str, error: Exception) -> PipelineError:
    """Say why TLS failed, with what makes it work."""
    text = _short(error)
    if "WRONG_VERSION_NUMBER" in text or "record layer" in text:
        return UsageError(
            "the registry speaks http, not https", where=base, hint=f"--to {base.replace('https', 'http', 1)}"
        )
    return AccessError(
        "the registry's certificate is not trusted",
        where=base,
        found=text,
        hint="name the CA that signed it: SSL_CERT_FILE=ca.pem (for the Ollama that pulls, too)",
    )


def _short(error: BaseException) -> str:
    """Give the innermost reason of a client's error."""
    while inner := _inner(error):
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())[:300]


def _inner(error: BaseException) -> BaseException | None:
    reason = getattr(error, "reason", None)
    return next((one for one in (reason, *error.args) if isinstance(one, BaseException)), None)
