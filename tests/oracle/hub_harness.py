"""The target that is a repository of the Hub, for the contract of all targets."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = "library/demo"


def _load(name: str) -> ModuleType:
    key = f"oracle_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


class HubHarness:
    """A Hub with no repository; *text* is what is written after --to."""

    text = f"hf:{REPO}"

    def __init__(self, server: Any, uploads: Any) -> None:
        self.hub = server.hub
        self.uploads = uploads

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the repository now."""
        repo = self.hub.repos.get(REPO)
        return dict(repo.commits[repo.refs["main"]]) if repo else {}

    def visible(self) -> dict[str, list[str]]:
        """Return what the Hub makes of the files for Ollama: the GGUF of the tag, and one set of layers for all."""
        is_layer = ("template", "system", "params", "LICENSE")
        texts = [self._digest(text) for name, text in self.files.items() if name.startswith(is_layer)]
        tags = {name.removeprefix("demo-").removesuffix(".gguf"): name for name in self.files if name[-5:] == ".gguf"}
        if "Q4_K_M" in tags:
            tags["latest"] = tags["Q4_K_M"]
        return {f"{REPO}:{tag}": [self._digest(self.files[name]), *texts] for tag, name in tags.items()}

    def blob(self, digest: str) -> bytes:
        """Return a file's content."""
        return next(text for text in self.files.values() if self._digest(text) == digest)

    @property
    def faults(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """What makes a publication fail: each request is refused once, in a way that is not tried again."""
        places = {
            "the repository is not allowed": "/api/repos/create",
            "the files are refused": "/preupload/",
            "the storage gives no place": "/info/lfs/objects/batch",
            "the storage refuses": "/upload/",
            "what has arrived is not there": "/verify",
            "the commit is refused": "/commit/",
        }
        return {name: partial(self._refused, place) for name, place in places.items()}

    @contextmanager
    def _refused(self, place: str) -> Iterator[None]:
        self.hub.fail(place, 403)
        yield
        self.hub.faults.clear()

    @staticmethod
    def _digest(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def open_harness(_kind: str, _folder: Path) -> Iterator[HubHarness]:
    """Run a Hub, and let the client find it with a token that may write."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    module = _load("hub_server")
    with module.serve() as server:
        uploads = _load("hub_uploads").accept_uploads(server, module.Repo)
        settings = {"HF_ENDPOINT": server.hub.url, "HF_TOKEN": server.hub.token}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield HubHarness(server, uploads)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
