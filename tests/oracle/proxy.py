"""A proxy in front of an HTTP/1.1 server that cuts connections at any byte, changes bytes, or answers by itself.

One request goes over one connection, to the server and from the client, so that a fault hits the request that it is
meant for.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PIECE = 1 << 16
_MAX_HEAD = 1 << 16
_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection: *[^\r]*\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """What happens to one request; offsets are in bytes, of the head and the body together.

    Attributes:
        answer: a whole answer, given after the body was read; the server is not asked.
        cut_request: the server gets so many bytes, then both connections are closed.
        cut_answer: the server gets all and answers, the client gets so many bytes of it.
        flip: of the body, the byte that arrives changed.
    """

    answer: bytes | None = None
    cut_request: int | None = None
    cut_answer: int | None = None
    flip: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request that was made: bytes sent and received, heads included."""

    method: str
    path: str
    sent: int
    received: int


Plan = Callable[[int, str, str], Fault | None]


def answer(status: int, body: str = "", **headers: str) -> bytes:
    """Make an answer; header names are written with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in ({"Content-Length": str(len(body))} | named).items()]
    return "\r\n".join([f"HTTP/1.1 {status} Fault", *lines, "Connection: close", "", body]).encode()


def _no_fault(_number: int, _method: str, _path: str) -> None:
    """Let everything through."""


def _not_listening(_head: str) -> None:
    """Hear nothing."""


class Front:
    """The proxy: *host* is its address; *plan* decides each request's fault by its number, method and path.

    *listen* is told the head of each request.
    """

    def __init__(self, host: str, target: str) -> None:
        self.host, self._target = host, target
        self.plan: Plan = _no_fault
        self.seen: list[Seen] = []
        self.listen: Callable[[str], object] = _not_listening
        self._number = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def failing(self, plan: Plan) -> Iterator[None]:
        """Follow *plan* until the block ends; requests are counted from 0."""
        self.seen, self._number, self.plan = [], 0, plan
        try:
            yield
        finally:
            self.plan = _no_fault

    def handle(self, client: socket.socket) -> None:
        """Serve the one request of a connection."""
        with contextlib.suppress(OSError), client:
            client.settimeout(_SECONDS)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head, rest = _read_head(client)
            if not head:
                return
            self.listen(head.decode("latin-1"))
            method, path = head.split(b" ", 2)[:2]
            with self._lock:
                number, self._number = self._number, self._number + 1
                fault = self.plan(number, method.decode(), path.decode()) or Fault()
            found = _LENGTH.search(head)
            body = _body(client, rest, int(found[1]) if found else 0)
            if fault.answer is not None:
                for _ in body:
                    pass
                client.sendall(fault.answer)
                received = sent = 0
            else:
                sent, received = self._forward(client, _CONNECTION.sub(b"\r\n", head), body, fault)
            with self._lock:
                self.seen.append(Seen(method.decode(), path.decode(), sent, received))

    def _forward(self, client: socket.socket, head: bytes, body: Iterator[bytes], fault: Fault) -> tuple[int, int]:
        host, _, port = self._target.rpartition(":")
        with socket.create_connection((host, int(port)), _SECONDS) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            whole = _changed(head[:-2] + b"Connection: close\r\n\r\n", body, fault.flip)
            sent = _relay(whole, server, fault.cut_request)
            if fault.cut_request is not None and fault.cut_request <= sent:
                return sent, 0
            answered = iter(lambda: server.recv(_PIECE), b"")
            return sent, _relay(answered, client, fault.cut_answer, drain=True)


def _relay(pieces: Iterator[bytes], to: socket.socket, limit: int | None, *, drain: bool = False) -> int:
    """Send *pieces* on, *limit* bytes at most; return how many there were, or were sent if the rest is not drained."""
    total = 0
    for piece in pieces:
        if limit is None or total < limit:
            to.sendall(piece if limit is None else piece[: limit - total])
        total += len(piece)
        if limit is not None and total >= limit and not drain:
            return limit
    return total


def _changed(head: bytes, body: Iterator[bytes], flip: int | None) -> Iterator[bytes]:
    yield head
    at = 0
    for piece in body:
        data = bytearray(piece)
        if flip is not None and at <= flip < at + len(piece):
            data[flip - at] ^= 1
        at += len(piece)
        yield bytes(data)


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(_PIECE)
        if not piece or len(data) > _MAX_HEAD:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _body(client: socket.socket, rest: bytes, length: int) -> Iterator[bytes]:
    left = length
    while left:
        piece = rest or client.recv(min(_PIECE, left))
        rest = b""
        if not piece:
            raise ConnectionError("the client went away")
        left -= len(piece)
        yield piece


@contextlib.contextmanager
def fault_proxy(target: str) -> Iterator[Front]:
    """Listen on a free port and pass everything on to *target*, "host:port", until the block ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        front = Front(f"127.0.0.1:{listener.getsockname()[1]}", target)
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=front.handle, args=(client,)))
                threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield front
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join(_SECONDS)
