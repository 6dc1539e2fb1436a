"""Sessions of requests as a person expects them: the system's CAs, the environment's proxies, our name."""

from __future__ import annotations

import http.client
import ipaddress
import os
import ssl
from typing import Any, BinaryIO

import requests
import urllib3
import urllib3.connection
from requests.adapters import HTTPAdapter

from pipeline import __version__

_BLOCK_BYTES = 1 << 18  # read from a file and sent at once


class _Lines:
    """The head of an answer, line by line, whole lines only."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readline(self, limit: int = -1) -> bytes:
        """Read a line; http.client itself takes a head that breaks off for a whole one, a cut address included."""
        line = self._file.readline(limit)
        if line.endswith(b"\n") or len(line) == limit:
            return line
        raise http.client.RemoteDisconnected("the answer broke off in its head")

    def close(self) -> None:
        """Close the connection."""
        self._file.close()


class _WholeHead(http.client.HTTPResponse):
    """An answer whose head ended as it must."""

    def begin(self) -> None:
        """Read the head."""
        file: Any = self.fp
        lines: Any = _Lines(file)
        self.fp = lines  # begin() reads lines alone
        try:
            super().begin()
        finally:
            if self.fp is lines:  # else it is closed
                self.fp = file


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _WholeHead


class _TlsConnection(urllib3.connection.HTTPSConnection):
    response_class = _WholeHead


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Trusts what the system trusts (SSL_CERT_FILE, SSL_CERT_DIR), reads files in larger blocks, and whole heads."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), blocksize=_BLOCK_BYTES, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(
            *args, ssl_context=ssl.create_default_context(), blocksize=_BLOCK_BYTES, **kwargs
        )
        manager.pool_classes_by_scheme = _POOLS
        return manager


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Session(requests.Session):
    """Sends no login but what a request is given: requests would take one from ~/.netrc, after a redirect too."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = _as_it_is

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:  # noqa: ARG002
        prepared_request.headers.pop("Authorization", None)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def session(host: str) -> requests.Session:
    """Make a session for *host*, with proxies and CAs as the environment says; no proxy is asked about this machine.

    A login is sent only where a request has one.
    """
    made = _Session()
    made.trust_env = not _is_this_machine(host)
    made.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    made.headers["User-Agent"] = f"gguf-pipeline/{__version__}"
    adapter = _Adapter()
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
