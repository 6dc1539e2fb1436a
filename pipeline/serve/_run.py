"""Run the registry: in the foreground until a signal, or in a thread beside something else."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.http import HttpProcessingError

from pipeline.errors import AccessError, UsageError
from pipeline.serve._app import is_loopback, make_app
from pipeline.serve._settings import Settings
from pipeline.store import Store

_LOG = logging.getLogger(__name__)
_SHUTDOWN_S = 1.0  # for requests under way; a pull that is cut resumes at its byte


def serve(
    store: Store, host: str, port: int, on_ready: Callable[[str], None], settings: Settings | None = None
) -> None:
    """Serve *store* until SIGINT, SIGTERM or SIGHUP; *on_ready* gets "host:port" once it answers.

    Port 0 means any free one.  Must run in the main thread, as signals do.

    Raises:
        UsageError: if *host* is not of this machine alone and the settings do not allow that, or if a certificate or
            its key is bad.
        AccessError: if the address can not be had.
    """
    settings = settings or Settings()
    host = host.removeprefix("[").removesuffix("]")  # as an IPv6 address is written before a port
    if not settings.allow_remote and not is_loopback(host):
        raise UsageError(
            "reading needs no password, and this address is open to other machines",
            where=host,
            expected="127.0.0.1",
            hint="serve on 127.0.0.1, or add --allow-remote: anybody who reaches the port can then read the models",
        )
    asyncio.run(_serve_until_signal(store, host, port, on_ready, settings))


class BackgroundServer:
    """Context manager that serves *store* from a thread; *address* is "127.0.0.1:port".

    Raises:
        UsageError: on entry, if a certificate or its key is bad.
        AccessError: on entry, if the port can not be had.
    """

    def __init__(self, store: Store, port: int = 0, settings: Settings | None = None) -> None:
        self._store = store
        self._port = port
        self._settings = settings or Settings()
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
        async with _running(self._store, "127.0.0.1", self._port, self._settings) as address:
            self._address, self._stop = address, partial(loop.call_soon_threadsafe, stop.set)
            self._started.set()
            await stop.wait()


async def _serve_until_signal(
    store: Store, host: str, port: int, on_ready: Callable[[str], None], settings: Settings
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with _running(store, host, port, settings) as address:
        on_ready(address)
        await stop.wait()


@asynccontextmanager
async def _running(store: Store, host: str, port: int, settings: Settings) -> AsyncIterator[str]:
    """Answer on one socket, and give its address."""
    # "localhost" would be two sockets, IPv4 and IPv6, with two ports if any free port will do
    host = "127.0.0.1" if host == "localhost" else host
    runner = web.AppRunner(
        make_app(store, settings=settings),
        access_log=None,
        logger=_LOG,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=settings.stall_s,
    )
    context = _tls(settings)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
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


def _brief(record: logging.LogRecord) -> bool:
    """Leave one line of a request that is no HTTP: anybody can send one, and the trace says nothing of us."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args = f"{record.getMessage()}: {' '.join(error.message.split())[:200]!r}", ()
        record.exc_info = None
    return True


_LOG.addFilter(_brief)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Load the certificate; None where there is none, and http is spoken.

    Raises:
        UsageError: if it or its key is bad or missing.
    """
    if settings.certificate is None and settings.key is None:
        return None
    if settings.certificate is None or settings.key is None:
        raise UsageError("https needs a certificate and its key", hint="give --tls-cert and --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # the password is empty, so that nobody is asked for one at the terminal
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except (OSError, ValueError) as exc:
        raise UsageError(
            "the certificate can not be used",
            where=settings.certificate,
            expected="a PEM file with the certificate, then those that signed it; the key unencrypted and its own",
            found=exc,
        ) from exc
    return context
