"""The target `static:DIR`: a folder that any web server can serve, and `ollama pull` takes for a registry."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

from pipeline import data
from pipeline.errors import AccessError, UsageError
from pipeline.publish import _layers
from pipeline.publish._read_back import present, read_back
from pipeline.publish._release import Published, Release, ReleaseEntry
from pipeline.publish._staged import StagedTarget
from pipeline.publish._static_tree import StaticTree, translated, write_file
from pipeline.store import Manifest, Name, Store, locks, registry_address, registry_host
from pipeline.store.blobs import hash_bytes
from pipeline.store.manifest import MANIFEST
from pipeline.types import Blob, Log

_PREFIX = "static:"
_STAGING = ".staging"
# What nginx would read as something else, even in quotes.
_UNQUOTABLE = '$"\\\n\r'

_LOCATION = Template("""\
# For a `server` block of your own: include "$root/v2.conf";
# A blob needs a Location header: `ollama pull` asks for it once and fetches the parts from where it points; "#" is the
# blob itself.  Ranges and lengths are nginx's own business.
location /v2/ {
    root "$root";
    types { }
    default_type application/octet-stream;
    location = /v2/ {
        default_type application/json;
        return 200 "{}";
    }
    location ~ ^/v2/[^/.][^/]*/[^/.][^/]*/manifests/[^/.][^/]*$$ {
        default_type $manifest;
        add_header Docker-Distribution-Api-Version registry/2.0;
        add_header Cache-Control no-cache;
    }
    location ~ ^/v2/[^/.][^/]*/[^/.][^/]*/blobs/sha256:[0-9a-f]+$$ {
        add_header Location "#";
        add_header Docker-Distribution-Api-Version registry/2.0;
        add_header Cache-Control "public, max-age=31536000, immutable";
    }
    location ~ /\\. {
        return 404;
    }
}
""")
_NGINX = Template("""\
# A whole nginx for this folder alone, for anybody to start:  nginx -p $quoted -c nginx.conf
daemon off;
pid .nginx/pid;
error_log stderr;
worker_processes auto;
events { }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path .nginx;
    proxy_temp_path .nginx;
    fastcgi_temp_path .nginx;
    uwsgi_temp_path .nginx;
    scgi_temp_path .nginx;
    server {
        listen $address;
        include v2.conf;
    }
}
""")
_README = Template("""\
# Models for `ollama pull`

This folder is a registry for reading, made by gguf-pipeline. `v2/` holds the models; serve it at `/v2/`.

- With nginx as you are: `nginx -p $quoted -c nginx.conf`, at $address.
- With your own nginx: `include "$root/v2.conf";` in a `server` block. If the folder moves, correct `root` in there.
- With another web server: serve `v2/` as plain files, with ranges, and put the header `Location: #` on blobs. Without
  it Ollama says `http: no Location header in response`.

Then, on any machine that reaches it (`--insecure` means http; without it Ollama wants https):

    ollama pull --insecure $host/<namespace>/<model>:<tag>

Publish again with `--to static:$quoted` for a new version. What the old one alone needed stays for an hour, so that
whoever is pulling it gets the rest, and goes when something is published after that. `.staging` and `.nginx` are not
for serving; copy the folder without them.
""")


class StaticTarget(StagedTarget):
    """A folder of files; the models are called by the address of the embedded registry, which nginx.conf listens on."""

    def __init__(self, root: Path) -> None:
        self._tree = StaticTree(root)
        self._blobs = Store(root / _STAGING)
        super().__init__(registry_host(), self._blobs)

    def publish(self, release: Release, log: Log) -> Published:
        """Put a release into the folder, blobs first; see `PublishTarget.publish`."""
        pairs = release.names(self.host)
        with translated(self._blobs.root):
            self._blobs.root.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(self._blobs.root, log.stage):
            try:
                manifests = {id(entry): self._add(release, entry) for entry in release.entries}
            finally:
                self._empty_staging()
            made = [(name, manifests[id(entry)]) for name, entry in pairs]
            before = self._tree.named(made[0][0])
            self._tree.put_manifests(made)
            self._tree.prune(made[0][0], before)
            self._describe()
            checks = read_back(self._tree, made)  # before another publication may replace them
        names = tuple(name for name, _ in pairs)
        digests = tuple(hash_bytes(manifest.to_bytes()).digest for _, manifest in made)
        return Published(names, digests, self._commands(release), checks)

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:
        """Say what the tags name now; see `PublishTarget.published`."""
        there = [name for name in self.names(namespace, model, tags) if self._tree.manifest_path(name).is_file()]
        return present(self._tree, there)

    def _add(self, release: Release, entry: ReleaseEntry) -> Manifest:
        """Put every blob of an entry in its place."""
        made = _layers.assemble(entry)
        self.keep_gguf(entry)
        for text in made.texts.values():
            self._blobs.add_bytes(text)
        name = Name(self.host, release.namespace, release.model, entry.tags[0])
        for layer in made.manifest.all_layers:
            self._tree.put_blob(name, layer.blob, self._blobs.blob_path(layer.blob.digest))
        return made.manifest

    def _empty_staging(self) -> None:
        """Take away the second names of what is in its place, and what an error left."""
        for path in self._blobs.blobs_dir.glob("sha256-" + "?" * 64):
            with suppress(OSError):
                path.unlink()

    def _describe(self) -> None:
        """Write what a web server and a person need to know, beside the models."""
        root = self._tree.root
        facts = {
            "root": str(root),
            "quoted": shlex.quote(str(root)),
            "address": registry_address(),
            "host": self.host,
            "manifest": MANIFEST,
        }
        with translated(root):
            (root / ".nginx").mkdir(exist_ok=True)
        for name, template in (("v2.conf", _LOCATION), ("nginx.conf", _NGINX), ("README.md", _README)):
            write_file(root / name, template.substitute(facts))

    def _commands(self, release: Release) -> tuple[str, ...]:
        pulls = [f"{self.host}/{release.namespace}/{release.model}:{entry.tags[0]}" for entry in release.entries]
        serve = f"nginx -p {shlex.quote(str(self._tree.root))} -c nginx.conf"
        return serve, *(f"ollama pull --insecure {name}" for name in pulls), release.use(pulls[0])


class _Static:
    """The plug-in."""

    name = "static"
    usage = "static:DIR"

    def accepts(self, text: str) -> bool:
        """Whether *text* is "static:" and a folder."""
        return text.startswith(_PREFIX)

    def open(self, text: str) -> StaticTarget:
        """Open the folder, which need not exist yet."""
        place = text.removeprefix(_PREFIX)
        root = data.user_path(place).absolute()
        if not place or any(character in str(root) for character in _UNQUOTABLE):
            raise UsageError(
                "not a folder for a web server",
                where=f"--to {text}",
                expected="static:DIR, with a path that nginx.conf can hold",
                hint='choose one without $, " and \\',
            )
        there = data.nearest_existing(root)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise AccessError("the folder can not be written", where=there, hint="name a folder of your own")
        return StaticTarget(root)


TARGET = _Static()
