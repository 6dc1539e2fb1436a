"""Sessions of requests as a person expects them: the system's CAs, the environment's proxies, our name."""

from __future__ import annotations

import ipaddress
import os
import ssl
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from pipeline import __version__

_BLOCK_BYTES = 1 << 18  # read from a file and sent at once


class _SystemTrust(HTTPAdapter):
    """Trusts what the system trusts (SSL_CERT_FILE, SSL_CERT_DIR), and reads files in larger blocks."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), blocksize=_BLOCK_BYTES, **kwargs)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(
            *args, ssl_context=ssl.create_default_context(), blocksize=_BLOCK_BYTES, **kwargs
        )


def session(host: str) -> requests.Session:
    """Make a session for *host*, with proxies and CAs as the environment says; no proxy is asked about this machine."""
    made = requests.Session()
    made.trust_env = not _is_this_machine(host)
    made.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    made.headers["User-Agent"] = f"gguf-pipeline/{__version__}"
    adapter = _SystemTrust()
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
