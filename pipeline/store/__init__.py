"""Ollama's layout on disk: names, manifests, blobs, locks.  Used by publish, serve, list, rm and gc.

In: files and small texts.  Out: `blobs/sha256-<hex>` and `manifests/<host>/<namespace>/<model>/<tag>` under one root,
in the form that `ollama` reads, whole or not at all.
"""

from pipeline.store.blobs import hash_file
from pipeline.store.deletion import remove_blob, untag
from pipeline.store.manifest import Manifest, config_bytes, human_number
from pipeline.store.names import Name, slug
from pipeline.store.roots import (
    LOCAL_HOST,
    local_name,
    local_store_root,
    ollama_store_root,
    registry_address,
    registry_host,
)
from pipeline.store.store import Entry, Problem, Store, Swept, Verified

__all__ = [
    "LOCAL_HOST",
    "Entry",
    "Manifest",
    "Name",
    "Problem",
    "Store",
    "Swept",
    "Verified",
    "config_bytes",
    "hash_file",
    "human_number",
    "local_name",
    "local_store_root",
    "ollama_store_root",
    "registry_address",
    "registry_host",
    "remove_blob",
    "slug",
    "untag",
]
