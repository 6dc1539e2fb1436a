"""The target `ollama`: straight into the store of the Ollama on this machine; a running one sees it at once.

Where that store is not ours to write, or another machine's (OLLAMA_HOST), the daemon is asked to take the model.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace

from pipeline.errors import AccessError
from pipeline.publish import _daemon
from pipeline.publish._daemon_target import DaemonTarget
from pipeline.publish._release import Published, Release
from pipeline.publish._store_target import StoreTarget, require_writable
from pipeline.store import Store, ollama_store_root, registry_host
from pipeline.types import Log


class OllamaTarget(StoreTarget):
    """Ollama's own store; the models have the names that a pull from the embedded registry gives them."""

    def publish(self, release: Release, log: Log) -> Published:
        """Write a release into the store, and ask a running Ollama whether it lists it; see `PublishTarget.publish`."""
        self._note_owner(log)
        names, digests, checks = self.write(release, log)
        with closing(_daemon.Daemon()) as daemon:
            seen = _daemon.check_listed(daemon, dict(zip(map(str, names), digests, strict=True)), self.store.root)
        shown = [replace(names[0], tag=entry.tags[0]) for entry in release.entries]
        return Published(names, digests, tuple(map(release.use, shown)), (*checks, seen))

    def _note_owner(self, log: Log) -> None:
        """Say when Ollama runs as somebody else: it reads our blobs, but can not touch or remove them."""
        if os.geteuid() == 0 or not self.store.blobs_dir.is_dir():
            return
        if self.store.blobs_dir.stat().st_uid != os.geteuid():
            log.note(f"{self.store.root} belongs to another user: `ollama create FROM` this model will fail there")


class _Ollama:
    """The plug-in."""

    name = "ollama"
    usage = "ollama"

    def accepts(self, text: str) -> bool:
        """Whether *text* is "ollama"."""
        return text == self.name

    def open(self, text: str) -> OllamaTarget | DaemonTarget:  # noqa: ARG002  # there is one Ollama
        """Open this machine's Ollama store, or the daemon where its store is elsewhere or not ours to write.

        Raises:
            AccessError: if the store can not be written, and no daemon answers.
        """
        store, daemon = Store(ollama_store_root(), tool="ollama"), _daemon.Daemon()
        if daemon.is_remote:
            return DaemonTarget(daemon)
        is_there = daemon.answers()
        try:
            require_writable(
                store,
                "run as the store's owner (sudo), start Ollama, or publish with --to local and "
                "`ollama pull --insecure` from there",
            )
        except AccessError:
            if not is_there:
                raise
            return DaemonTarget(daemon)
        if is_there and not daemon.uses(store):
            return DaemonTarget(daemon)
        daemon.close()
        return OllamaTarget(store, registry_host())


TARGET = _Ollama()
