"""Take single things out of a store as a registry does: a name without its blobs, or a blob that no name needs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.store import _disk, locks
from pipeline.store.names import Name
from pipeline.store.store import Store


def untag(store: Store, names: Sequence[Name]) -> None:
    """Remove the manifests of *names*, those that are there; their blobs stay until `gc`.

    Raises:
        AccessError: if the disk refuses.
    """
    with store.locked(locks.exclusive):
        for path in map(store.manifest_path, names):
            with _disk.translated(path):
                path.unlink(missing_ok=True)
                if path.parent.is_dir():
                    _disk.sync_folder(path.parent)
                _disk.remove_empty_folders(path.parent, store.manifests_dir)


def remove_blob(store: Store, digest: str) -> bool:
    """Remove one blob, and tell whether it was there.

    Raises:
        UsageError: if a model of the store needs it: half a model must never be visible.
        FormatError: if *digest* is none.
        AccessError: if the disk refuses.
    """
    path = store.blob_path(digest)
    with store.locked(locks.exclusive), _disk.translated(path):
        if not path.exists():
            return False
        if digest in store.referenced():
            raise UsageError(
                "a published model needs this blob", where=digest, hint="remove the models first, then the blob"
            )
        path.unlink()
        return True
