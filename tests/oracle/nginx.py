"""A real nginx for tests, unprivileged, on a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Nginx:
    """A running nginx; *access_log* names each request: method, path, status, bytes."""

    address: str
    access_log: Path

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://{self.address}"

    def requests(self) -> list[list[str]]:
        """Return the requests so far, each as method, path, status and bytes of the body."""
        return [line.split() for line in self.access_log.read_text().splitlines()]


def program() -> str | None:
    """Find nginx, which Debian keeps out of a user's PATH."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Find a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(folder: Path, include: Path) -> Iterator[Nginx]:
    """Serve with a `server` block that includes *include*; logs and other files go to *folder*."""
    port, log = free_port(), folder / "access.log"
    folder.mkdir(parents=True, exist_ok=True)
    paths = "".join(f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"pid pid; error_log stderr; daemon off; events {{}} http {{ {paths} "
        "log_format short '$request_method $uri $status $body_bytes_sent';"
        f'access_log access.log short; server {{ listen 127.0.0.1:{port}; include "{include}"; }} }}'
    )
    with started(folder, port):
        yield Nginx(f"127.0.0.1:{port}", log)


@contextlib.contextmanager
def started(folder: Path, port: int) -> Iterator[None]:
    """Run nginx with the nginx.conf in *folder* until the block ends; it listens on *port*."""
    found = program()
    assert found is not None
    # As root, its workers would be somebody who can not read a test's folder.
    as_root = ["-g", "user root;"] if os.geteuid() == 0 else []
    with (folder / "stderr").open("wb") as errors:
        child = subprocess.Popen(
            [found, "-p", folder, "-c", "nginx.conf", "-e", "stderr", *as_root],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    try:
        _wait(child, port, folder / "stderr")
        yield
    finally:
        child.terminate()
        child.wait(15)


def _wait(child: subprocess.Popen[bytes], port: int, errors: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise AssertionError(f"nginx did not come up:\n{errors.read_text()}")
