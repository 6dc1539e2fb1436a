"""The door to Dask: a running cluster as an executor."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import AccessError, ToolError

_SECONDS = 10
_KNOCK_SECONDS = 3.0
_OVER_TCP = ("tcp", "tls", "ws", "wss")


class _Cluster(Executor):
    """The workers of *client*.  A call that runs cannot be broken off there: it ends by itself."""

    def __init__(self, client: Any) -> None:
        self._workers: Executor = client.get_executor(pure=False, retries=0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call *fn* on a worker; arguments and answer travel pickled."""
        return self._workers.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with *cancel_futures*, take back those that have not begun."""
        self._workers.shutdown(wait=wait and not cancel_futures)


def _knock(address: str) -> None:
    """See whether anybody listens at *address*, where that is a matter of TCP; Dask's client tries for ten seconds.

    Raises:
        OSError: if nobody does.
        ValueError: if the address is none.
    """
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme in _OVER_TCP and parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), _KNOCK_SECONDS).close()


@contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """Give an executor whose calls run on the workers of the Dask scheduler at *address* ("tcp://host:8786").

    Raises:
        ToolError: if Dask is not installed.
        AccessError: if no scheduler answers there, or it has no worker.
    """
    try:
        from distributed import Client
    except ImportError as error:
        hint = "pip install 'gguf-pipeline[batch]', here and on the workers"
        raise ToolError("Dask is not installed", hint=hint) from error
    try:
        _knock(address)
        client: Any = Client(address, timeout=_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise AccessError(
            "no Dask scheduler answers",
            where=address,
            found=error,
            hint="start one: dask scheduler; dask worker ADDRESS",
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise AccessError("the Dask scheduler has no worker", where=address, hint=f"dask worker {address}")
        yield _Cluster(client)
