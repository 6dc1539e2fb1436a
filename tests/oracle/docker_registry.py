"""A real registry for tests: Debian's docker-registry, served from an empty folder on a port of its own."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "docker-registry"
_START_SECONDS = 30.0
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


def find_program() -> str | None:
    """Return the program, or None where it is not installed."""
    return shutil.which(PROGRAM)


@dataclass(frozen=True)
class DockerRegistry:
    """A running registry: *host* is "127.0.0.1:PORT", *root* its folder."""

    host: str
    root: Path
    log_file: Path
    child: subprocess.Popen[bytes]
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base address."""
        return f"{self.scheme}://{self.host}"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def _docker(self) -> Path:
        return self.root / "docker" / "registry" / "v2"

    def visible(self) -> dict[str, list[str]]:
        """Return the digests of each model's blobs, the GGUF's first, by "namespace/model:tag"."""
        found = {}
        for link in sorted(self._docker.glob("repositories/*/*/_manifests/tags/*/current/link")):
            *_, namespace, model, _, _, tag, _, _ = link.parts
            manifest = json.loads(self.blob(link.read_text(encoding="ascii").strip()))
            layers = [*manifest["layers"], manifest["config"]]
            found[f"{namespace}/{model}:{tag}"] = [layer["digest"] for layer in layers]
        return found

    def blob(self, digest: str) -> bytes:
        """Return a blob's content."""
        value = digest.removeprefix("sha256:")
        return (self._docker / "blobs" / "sha256" / value[:2] / value / "data").read_bytes()

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        value = digest.removeprefix("sha256:")
        return (self._docker / "blobs" / "sha256" / value[:2] / value / "data").exists()

    @contextlib.contextmanager
    def full_disk(self, free_bytes: int = 0) -> Iterator[None]:
        """Let no file of the registry grow beyond *free_bytes*, as on a disk that is full."""
        _, hard = resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (free_bytes, hard))
        try:
            yield
        finally:
            resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextlib.contextmanager
def running_registry(
    folder: Path,
    *,
    location: bool = True,
    auth: Mapping[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    deletes: bool = True,
    relative: bool = False,
) -> Iterator[DockerRegistry]:
    """Serve from *folder* until the block ends.

    Args:
        folder: config, log and data are made in it.
        location: whether blobs come with the header that `ollama pull` needs.
        auth: the section "auth" of its config.
        tls: certificate and key.
        deletes: whether manifests can be deleted.
        relative: whether it answers with relative addresses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root, log_file = folder / "data", folder / "log"
    http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "a secret of the tests", "relativeurls": relative}
    if location:
        http["headers"] = {"Location": ["#"]}
    if tls:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    storage = {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": deletes}}
    config = {"version": 0.1, "log": {"level": "info"}, "storage": storage, "http": http}
    if auth:
        config["auth"] = dict(auth)
    (folder / "config.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            [PROGRAM, "serve", folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        host = _wait_until_ready(child, log_file)
        yield DockerRegistry(host, root, log_file, child, "https" if tls else "http")
    finally:
        child.terminate()
        child.wait(30)


def _wait_until_ready(child: subprocess.Popen[bytes], log_file: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        found = _LISTENING.search(log_file.read_text(encoding="utf-8", errors="replace"))
        if found:
            host, _, port = found[1].partition(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
                return found[1]
        time.sleep(0.01)
    raise AssertionError(f"{PROGRAM} did not come up:\n{log_file.read_text(encoding='utf-8', errors='replace')}")
