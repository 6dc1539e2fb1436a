"""Where the stores lie, and under which address the embedded registry is reached."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pipeline.data import data_home, user_path
from pipeline.errors import UsageError
from pipeline.store.names import DEFAULT_HOST, Name

# The folder under manifests/ of the embedded registry's store.  It is fixed: the same models are there whatever port
# the registry is served on, so a lookup never depends on the port of the day.
LOCAL_HOST = DEFAULT_HOST

_DEFAULT_ADDRESS = "127.0.0.1:11500"
_SERVICE_ROOT = Path("/usr/share/ollama/.ollama/models")
_LOOPBACK = ("localhost", "127.0.0.1")


def local_store_root() -> Path:
    """Return the root of the embedded registry's store: GGUF_PIPELINE_STORE, else a folder of the user's data."""
    own = os.environ.get("GGUF_PIPELINE_STORE")
    return user_path(own).absolute() if own else data_home() / "registry"


def ollama_store_root(service_root: Path = _SERVICE_ROOT) -> Path:
    """Return the root of this machine's Ollama store.

    OLLAMA_MODELS decides, then ~/.ollama/models; where that is missing and the Linux service's folder *service_root*
    exists, the latter.
    """
    own = os.environ.get("OLLAMA_MODELS")
    if own:
        return user_path(own).absolute()
    home = Path.home() / ".ollama" / "models"
    # os.path, because a folder that we may not look into is none to us, and no error.
    return service_root if not os.path.isdir(home) and os.path.isdir(service_root) else home  # noqa: PTH112


def registry_address() -> str:
    """Return "host:port" of the embedded registry: GGUF_PIPELINE_ADDR, else 127.0.0.1:11500.

    Raises:
        UsageError: if the setting is not host:port.
    """
    address = os.environ.get("GGUF_PIPELINE_ADDR") or _DEFAULT_ADDRESS
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            "the embedded registry's address is not host:port",
            where="GGUF_PIPELINE_ADDR",
            expected=_DEFAULT_ADDRESS,
            found=address,
        )
    return address


def registry_host() -> str:
    """Return the host of a published model's name, as Ollama is asked for it: "localhost:<port of the registry>"."""
    return f"localhost:{registry_address().rpartition(':')[2]}"


def local_name(text: str) -> Name:
    """Parse a name and file it under `LOCAL_HOST`, whichever port of this machine it names.

    Raises:
        UsageError: if *text* is no valid name.
    """
    name = Name.parse(text, default_host=LOCAL_HOST)
    return replace(name, host=LOCAL_HOST) if name.host.partition(":")[0] in _LOOPBACK else name
