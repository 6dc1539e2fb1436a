"""A running Ollama, asked over its HTTP API: what it has, to take a blob, to make a model, to render a prompt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from pipeline.errors import AccessError
from pipeline.publish._body import Body
from pipeline.runtime.ollama import daemon_url, daemon_version
from pipeline.store import Store
from pipeline.types import Blob, Check

_NAME = "listed by Ollama"
_COMMAND = "ollama list"
_TIMEOUT_S = (5.0, 60.0)  # to connect, to answer
_LONG_S = (5.0, 600.0)  # where it hashes, or loads a model
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Daemon:
    """The Ollama that OLLAMA_HOST names."""

    def __init__(self) -> None:
        self.url = daemon_url()
        self._http = requests.Session()
        self._http.trust_env = self.is_remote  # a proxy has no business between us and this machine

    @property
    def is_remote(self) -> bool:
        """Whether it runs on another machine."""
        return urlsplit(self.url).hostname not in _LOOPBACK

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def answers(self) -> bool:
        """Whether an Ollama is there at all."""
        return daemon_version(self.url) is not None

    def has_blob(self, digest: str) -> bool:
        """Whether its store has a blob."""
        with self._asked():
            answer = self._http.head(f"{self.url}/api/blobs/{digest}", timeout=_TIMEOUT_S)
        return answer.ok

    def uses(self, store: Store) -> bool:
        """Whether its store is *store*: a small blob that is put there must be seen by it.

        A running Ollama has made the folder of blobs; where there is none, its store is another.
        """
        if not os.path.isdir(store.blobs_dir):  # noqa: PTH112  # no error where we may not look
            return False
        with store.writing():
            blob = store.add_bytes(os.urandom(32))
            try:
                return self.has_blob(blob.digest)
            finally:
                store.blob_path(blob.digest).unlink(missing_ok=True)

    def send_blob(self, path: Path, blob: Blob, sent: Callable[[int], None]) -> None:
        """Send a file, hashed on the way; *sent* is told how many bytes of it have gone.

        Raises:
            FormatError: if the file is not what *blob* says.
            AccessError: if the daemon refuses, or is gone.
        """
        with path.open("rb") as file, self._asked():
            body = Body(file, blob, 0, blob.size, hashlib.sha256(), sent)
            answer = self._http.post(f"{self.url}/api/blobs/{blob.digest}", data=body, timeout=_LONG_S)
        self._require(answer, "/api/blobs")

    def create(self, name: str, wanted: Mapping[str, Any]) -> list[str]:
        """Make a model of blobs that are there, and return what the daemon said it did.

        Raises:
            AccessError: if the last thing it says is not "success".
        """
        body = {"model": name, **wanted, "stream": True}
        with (
            self._asked(),
            self._http.post(f"{self.url}/api/create", json=body, timeout=_LONG_S, stream=True) as answer,
        ):
            self._require(answer, "/api/create")
            lines = [json.loads(line) for line in answer.iter_lines() if line]
        said = [str(line.get("status", "")) for line in lines if "error" not in line]
        if not lines or lines[-1].get("status") != "success":
            raise AccessError(
                "Ollama did not make the model",
                where=f"{self.url}/api/create",
                expected="success",
                found=(lines[-1].get("error") or said[-1]) if lines else "no answer",
                hint="see its log; is its disk full?",
            )
        return said

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name; what had that name loses it."""
        self._call("POST", "/api/copy", source=source, destination=destination)

    def delete(self, name: str) -> None:
        """Take a name away; no error if nothing has it."""
        with self._asked():
            answer = self._http.delete(f"{self.url}/api/delete", json={"model": name}, timeout=_TIMEOUT_S)
        if answer.status_code != requests.codes.not_found:
            self._require(answer, "/api/delete")

    def show(self, name: str) -> dict[str, Any] | None:
        """Return what it tells of a model, None if it has none of that name."""
        with self._asked():
            answer = self._http.post(f"{self.url}/api/show", json={"model": name}, timeout=_TIMEOUT_S)
        if answer.status_code == requests.codes.not_found:
            return None
        self._require(answer, "/api/show")
        return dict(answer.json())

    def render(self, name: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt that it would send for a conversation; the model is loaded for that."""
        answer = self._call(
            "POST", "/api/chat", model=name, messages=list(messages), truncate=False, stream=False,
            _debug_render_only=True,
        )  # fmt: skip
        return str(answer.json()["_debug_info"]["rendered_template"])

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return what it lists, by name: digest (without a prefix), size in bytes, and more."""
        answer = self._call("GET", "/api/tags")
        return {str(model["name"]): dict(model) for model in answer.json()["models"]}

    def _call(self, method: str, path: str, **body: Any) -> requests.Response:
        with self._asked():
            answer = self._http.request(method, self.url + path, json=body or None, timeout=_LONG_S)
        self._require(answer, path)
        return answer

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (requests.RequestException, json.JSONDecodeError) as exc:
            raise AccessError(
                "Ollama does not answer",
                where=self.url,
                found=f"{type(exc).__name__}: {exc}"[:300],
                hint="start it: ollama serve; another address is set by OLLAMA_HOST",
            ) from exc

    def _require(self, answer: requests.Response, path: str) -> None:
        if answer.ok:
            return
        try:
            said = str(answer.json()["error"])
        except (ValueError, KeyError, TypeError):
            said = answer.text.strip()
        raise AccessError(
            "Ollama refuses",
            where=self.url + path,
            found=f"HTTP {answer.status_code} {said}"[:300],
            hint="see its log; is its disk full?",
        )


def check_listed(daemon: Daemon, wanted: Mapping[str, str], root: Path) -> Check:
    """Ask a running Ollama whether it lists *wanted*: names, and digests of their manifests in the store at *root*."""
    try:
        listed = {name: model["digest"] for name, model in daemon.listed().items()}
    except AccessError as exc:
        state = "no Ollama answers at" if isinstance(exc.__cause__, requests.ConnectionError) else "no Ollama is at"
        return Check(_NAME, "not checked", f"{state} {daemon.url}", _COMMAND)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        return Check(_NAME, "not checked", f"{daemon.url} does not answer as Ollama does: {exc!r}", _COMMAND)
    for name, digest in wanted.items():
        if listed.get(name) != digest.removeprefix("sha256:"):
            found = "another model" if name in listed else "nothing"
            detail = f"{daemon.url} lists {found} as {name}: its store is not {root} (OLLAMA_MODELS, OLLAMA_HOST)"
            return Check(_NAME, "different", detail, _COMMAND)
    return Check(_NAME, "proven", f"{daemon.url} lists {len(wanted)} of {len(wanted)} names")
