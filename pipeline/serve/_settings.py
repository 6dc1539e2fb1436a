"""What a server is told, and where its handlers find it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from pipeline.serve._access import Access
from pipeline.serve._demand import Demand
from pipeline.serve._uploads import Uploads
from pipeline.store import Store


@dataclass(frozen=True)
class Settings:
    """How a store is served.

    *allow_remote* answers to every name, not to this machine's alone; *remote_writes* takes writes from other machines
    as well.  Without a *token* the registry is read-only; *ollama_keys* is the file of the public keys of Ollamas that
    may push.  *on_demand* makes models at their first pull.  *certificate* and *key* are PEM files for https.
    *stall_s* is how long a client may keep quiet, between requests or within one.
    """

    allow_remote: bool = False
    remote_writes: bool = False
    token: str | None = field(default=None, repr=False)
    ollama_keys: Path | None = None
    on_demand: Demand | None = None
    certificate: Path | None = None
    key: Path | None = None
    stall_s: float = 60.0


STORE: web.AppKey[Store] = web.AppKey("store", Store)
HOST: web.AppKey[str] = web.AppKey("host", str)
SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
UPLOADS: web.AppKey[Uploads] = web.AppKey("uploads", Uploads)
ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
