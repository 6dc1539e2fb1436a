"""Run the registry: in the foreground until a signal, or in a thread beside something else."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import web

from pipeline.errors import AccessError, UsageError
from pipeline.serve._app import is_loopback, make_app
from pipeline.store import Store

_SHUTDOWN_S = 1.0  # for requests under way; a pull that is cut resumes at its byte


def serve(store: Store, host: str, port: int, on_ready: Callable[[str], None], *, allow_remote: bool = False) -> None:
    """Serve *store* until SIGINT, SIGTERM or SIGHUP; *on_ready* gets "host:port" once it answers.

    Port 0 means any free one.  Must run in the main thread, as signals do.

    Raises:
        UsageError: if *host* is not of this machine alone and *allow_remote* is not set: there is no password.
        AccessError: if the address can not be had.
    """
    host = host.removeprefix("[").removesuffix("]")  # as an IPv6 address is written before a port
    if not allow_remote and not is_loopback(host):
        raise UsageError(
            "the registry has no password, and this address is open to other machines",
            where=host,
            expected="127.0.0.1",
            hint="serve on 127.0.0.1, or add --allow-remote: anybody who reaches the port can then read the models",
        )
    asyncio.run(_serve_until_signal(store, host, port, on_ready, allow_remote))


class BackgroundServer:
    """Context manager that serves *store* from a thread; *address* is "127.0.0.1:port".

    Raises:
        AccessError: on entry, if the port can not be had.
    """

    def __init__(self, store: Store, port: int = 0) -> None:
        self._store = store
        self._port = port
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._stop: Callable[[], object] = lambda: None
        self._address = ""
        self._error: BaseException | None = None

    @property
    def address(self) -> str:
        """Where it answers: "127.0.0.1:port"."""
        return self._address

    @property
    def registry(self) -> str:
        """The host of a name that is pulled from here: "localhost:port"."""
        return f"localhost:{self._address.rpartition(':')[2]}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._error = exc
        finally:
            self._started.set()

    async def _main(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with _running(self._store, "127.0.0.1", self._port) as address:
            self._address, self._stop = address, partial(loop.call_soon_threadsafe, stop.set)
            self._started.set()
            await stop.wait()


async def _serve_until_signal(
    store: Store, host: str, port: int, on_ready: Callable[[str], None], allow_remote: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with _running(store, host, port, allow_remote) as address:
        on_ready(address)
        await stop.wait()


@asynccontextmanager
async def _running(store: Store, host: str, port: int, allow_remote: bool = False) -> AsyncIterator[str]:
    """Answer on one socket, and give its address."""
    # "localhost" would be two sockets, IPv4 and IPv6, with two ports if any free port will do
    host = "127.0.0.1" if host == "localhost" else host
    runner = web.AppRunner(make_app(store, allow_remote=allow_remote), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as exc:
            raise AccessError(
                "the registry's address can not be had",
                where=f"{host}:{port}",
                found=str(exc),
                hint="another registry may run already; choose another port (GGUF_PIPELINE_ADDR)",
            ) from exc
        found = runner.addresses[0]
        shown = f"[{found[0]}]" if ":" in found[0] else found[0]
        yield f"{shown}:{found[1]}"
    finally:
        await runner.cleanup()
