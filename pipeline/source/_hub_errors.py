"""The one table from errors of huggingface_hub, and of the HTTP client below it, to ours.

Rows are found by the names of the error's class and its bases, the most specific first: names, because the package
moved between HTTP libraries and importing it takes long.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from pipeline import patience
from pipeline.errors import AccessError, InputError, PipelineError, ResourceError, UsageError


@dataclass(frozen=True)
class Row:
    """What to say for one kind of error; *hint* may use {repo}, {revision} and {wait}."""

    error: type[PipelineError]
    what: str
    hint: str


_LOGIN = "log in with: hf auth login (or set HF_TOKEN)"
_NOT_A_HUB = Row(
    AccessError, "the server does not answer like a Hugging Face Hub", "check HF_ENDPOINT, the proxy and the firewall"
)
_GONE = Row(
    InputError,
    "the repository lacks a file that it listed",
    "run the command again; the repository may have changed",
)

CLASSES = {
    "GatedRepoError": Row(
        AccessError, "the repository is gated", f"ask for access at https://huggingface.co/{{repo}}, then {_LOGIN}"
    ),
    "DisabledRepoError": Row(AccessError, "the repository was disabled by the Hub", "choose another repository"),
    "RepositoryNotFoundError": Row(
        AccessError, "there is no such repository, or it is private", f"check the spelling; if it is private, {_LOGIN}"
    ),
    "RevisionNotFoundError": Row(
        InputError,
        "the repository has no such revision",
        "see the branches and tags at https://huggingface.co/{repo}/tree/main",
    ),
    "RemoteEntryNotFoundError": _GONE,
    "EntryNotFoundError": _GONE,
    "LocalEntryNotFoundError": Row(
        AccessError,
        "the model is not in the cache, and the Hub is out of reach",
        "run: gguf-pipeline pull {repo}  while online",
    ),
    "HFValidationError": Row(UsageError, "this cannot be the name of a repository", "write org/name[@revision]"),
    "OfflineModeIsEnabled": Row(
        AccessError, "the model is not whole in the cache, and HF_HUB_OFFLINE is set", "unset it and run again"
    ),
    "UnsupportedProtocol": Row(UsageError, "HF_ENDPOINT is not an address", "set it like https://huggingface.co"),
    "InvalidURL": Row(UsageError, "HF_ENDPOINT is not an address", "set it like https://huggingface.co"),
    "ProxyError": Row(AccessError, "the proxy refused", "check HTTPS_PROXY and HTTP_PROXY"),
    "TimeoutException": Row(
        AccessError, "the Hub did not answer in time", "run again; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer"
    ),
    "TransportError": Row(AccessError, "the Hub cannot be reached", "check the network, or HF_ENDPOINT if it is set"),
    "FileMetadataError": _NOT_A_HUB,
    "JSONDecodeError": _NOT_A_HUB,
    "BrokenOffError": Row(AccessError, "the download broke off", "run the command again; what has arrived is kept"),
    "OSError": Row(AccessError, "the download failed", "run the command again; what has arrived is kept"),
}

STATUS = {
    401: Row(AccessError, "the Hub does not accept the token", f"{_LOGIN}; or unset a stale HF_TOKEN"),
    403: Row(AccessError, "the Hub refuses access", f"check the token's rights; {_LOGIN}"),
    404: Row(AccessError, "the Hub does not know this", "check the spelling of {repo} and {revision}"),
    429: Row(
        AccessError, "the Hub asks to slow down", f"run again {{wait}}; with a token the limits are wider: {_LOGIN}"
    ),
    500: Row(AccessError, "the Hub is in trouble", "run again later; https://status.huggingface.co tells more"),
}

_FULL = Row(
    ResourceError, "the disk is full", "free some space, or set HF_HOME to a folder on a bigger disk, and run again"
)
_NOT_OURS = Row(
    AccessError, "the cache folder cannot be written", "become its owner, or set HF_HOME to a folder of your own"
)
_DISK = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL) | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), _NOT_OURS
)

# Settings to correct, or a mistake of ours: not a network that is down.
_NOT_THE_NETWORK = {"UnsupportedProtocol", "ProxyError", "LocalProtocolError"}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


class BrokenOffError(OSError):
    """A body that ended before it was whole, or went on after."""


def translate(error: BaseException, repo: str, revision: str) -> PipelineError | None:
    """Say *error*, raised while reading *repo* at *revision*, in our words; None if it is none of the table's."""
    error = _root(error)
    row = _row(error)
    if row is None:
        return None
    hint = row.hint.format(repo=repo, revision=revision, wait=_wait(error))
    return row.error(row.what, where=f"{repo}@{revision}", found=_found(error), hint=hint)


def is_unreachable(error: BaseException) -> bool:
    """Say whether *error* means that the Hub gave no answer of its own, so that a cached copy may serve."""
    if _NOT_THE_NETWORK.intersection(_names(error)):
        return False
    names = _names(error)
    return "TransportError" in names or "OfflineModeIsEnabled" in names or (_status(error) or 0) >= 500


def is_transient(error: BaseException) -> bool:
    """Say whether *error* may pass by itself, so that the same request is worth another try."""
    names = _names(error)
    if _NOT_THE_NETWORK.intersection(names):
        return False
    return "TransportError" in names or "BrokenOffError" in names or _status(error) in _TRANSIENT_STATUS


def asked_wait(error: BaseException) -> float | None:
    """Return the seconds that the server asks to wait, if it does."""
    response = _response(error)
    return None if response is None else patience.asked_wait(response.headers)


def _root(error: BaseException) -> BaseException:
    """Look through "not in the cache" to the answer that made the client look there."""
    cause = error.__cause__
    if "LocalEntryNotFoundError" in _names(error) and cause is not None and _row(cause) is not None:
        return _root(cause)
    return error


def _row(error: BaseException) -> Row | None:
    if isinstance(error, OSError) and error.errno in _DISK:
        return _DISK[error.errno]
    for name in _names(error):
        if name == "HfHubHTTPError":
            status = _status(error) or 500
            return STATUS.get(status, STATUS[500] if status >= 500 else STATUS[404])
        if name in CLASSES:
            return CLASSES[name]
    return None


def _names(error: BaseException) -> list[str]:
    return [c.__name__ for c in type(error).__mro__]


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _status(error: BaseException) -> int | None:
    status = getattr(_response(error), "status_code", None)
    return status if isinstance(status, int) else None


def _found(error: BaseException) -> str:
    status = _status(error)
    if status is None:
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    message = getattr(error, "server_message", None)
    return f"HTTP {status}" + (f", {' '.join(str(message).split())[:300]}" if message else "")


def _wait(error: BaseException) -> str:
    seconds = asked_wait(error)
    return "in some minutes" if seconds is None else f"in {seconds:.0f} seconds"
