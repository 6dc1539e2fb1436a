"""The target that is a folder for a web server, for the contract of all targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


class StaticHarness:
    """A folder that is not there yet; *text* is what is written after --to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.text = f"static:{root}"

    def visible(self) -> dict[str, list[str]]:
        """Return the digests of each model's blobs, the GGUF's first, by "namespace/model:tag"."""
        found = {}
        for path in self.root.glob("v2/*/*/manifests/*"):
            if path.is_file():
                tree = json.loads(path.read_bytes())
                name = "/".join(path.parts[-4:-2])
                found[f"{name}:{path.name}"] = [layer["digest"] for layer in (*tree["layers"], tree["config"])]
        return found

    def blob(self, digest: str) -> bytes:
        """Return a blob's content."""
        (path,) = self.root.glob(f"v2/library/demo/blobs/{digest}")
        return path.read_bytes()

    @property
    def faults(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """What makes a publication of library/demo fail half-way."""
        return {
            "a folder in the place of a manifest": self._manifest_is_taken,
            "a file in the place of a folder": self._blobs_are_taken,
        }

    @contextmanager
    def _manifest_is_taken(self) -> Iterator[None]:
        """The tag Q8_0 comes after two others, which are in place when it fails."""
        taken = self.root / "v2/library/demo/manifests/Q8_0"
        (taken / "folder").mkdir(parents=True)
        yield
        (taken / "folder").rmdir()
        taken.rmdir()

    @contextmanager
    def _blobs_are_taken(self) -> Iterator[None]:
        blobs = self.root / "v2/library/demo/blobs"
        blobs.rename(self.root / "kept")
        blobs.write_text("a file")
        yield
        blobs.unlink()
        (self.root / "kept").rename(blobs)


@contextmanager
def open_harness(kind: str, folder: Path) -> Iterator[StaticHarness]:
    """Name a folder in *folder*."""
    yield StaticHarness(folder / kind)
