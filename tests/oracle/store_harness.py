"""The targets that are stores on this disk, for the contract of all targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pipeline.store import LOCAL_HOST, Store


class StoreHarness:
    """An empty store; *text* is what is written after --to."""

    def __init__(self, text: str, root: Path) -> None:
        self.text = text
        self.store = Store(root)

    def visible(self) -> dict[str, list[str]]:
        """Return the digests of each model's blobs, the GGUF's first, by "namespace/model:tag"."""
        return {
            f"{entry.name.repository}:{entry.name.tag}": [
                layer.blob.digest for layer in self.store.read_manifest(entry.name).all_layers
            ]
            for entry in self.store.list()
        }

    def blob(self, digest: str) -> bytes:
        """Return a blob's content."""
        return self.store.blob_path(digest).read_bytes()

    @property
    def faults(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """What makes a publication of library/demo fail half-way."""
        return {"a folder in the place of a manifest": self._manifest_is_taken}

    @contextmanager
    def _manifest_is_taken(self) -> Iterator[None]:
        """The tag Q8_0 comes after two others, which are in place when it fails."""
        taken = self.store.manifests_dir / LOCAL_HOST / "library" / "demo" / "Q8_0"
        (taken / "folder").mkdir(parents=True)
        yield
        (taken / "folder").rmdir()
        taken.rmdir()


@contextmanager
def open_harness(text: str, folder: Path) -> Iterator[StoreHarness]:
    """Open the store that *text* means, in *folder*."""
    yield StoreHarness(text, folder / text)
