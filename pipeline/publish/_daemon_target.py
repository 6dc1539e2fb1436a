"""The target `ollama` where its store is not ours to write: everything goes through the daemon's HTTP API.

`ollama create` has a habit that a store has not: it adds a Go template of its own where a chat template looks like one
it knows.  So a template is set in its place, and prompts are compared before a name becomes visible.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.errors import AccessError, PipelineError, ProofError
from pipeline.publish._daemon import Daemon
from pipeline.publish._release import Prompt, Published, Release, ReleaseEntry
from pipeline.publish._staged import StagedTarget
from pipeline.store import Name, registry_host
from pipeline.types import Blob, Check, Log

_GUESSED = "using autodetected template"
_FROM = re.compile(r"^FROM \S*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)


class DaemonTarget(StagedTarget):
    """The Ollama at OLLAMA_HOST; models have the names that a pull from the embedded registry gives them."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(registry_host())
        self._daemon = daemon

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._daemon.close()

    def check(self, namespace: str, model: str, tags: Sequence[str]) -> None:
        """Refuse names that could not be published, and a daemon that is not there; see `PublishTarget.check`."""
        super().check(namespace, model, tags)
        self._daemon.listed()

    def published(self, namespace: str, model: str, tags: Sequence[str]) -> Mapping[str, tuple[Blob, ...]]:
        """Say what the tags name now; of the blobs Ollama tells the GGUF's alone, and the size of the whole model."""
        sizes = {name: int(listed["size"]) for name, listed in self._daemon.listed().items()}
        found = {}
        for name in self.names(namespace, model, tags):
            digest = _gguf_digest(self._daemon.show(str(name)) or {})
            if digest is not None:
                found[name.tag] = (Blob(digest, sizes.get(str(name), 0)),)
        return found

    def publish(self, release: Release, log: Log) -> Published:
        """Send the files, make every model under a name of its own, then give them theirs; see `PublishTarget`."""
        pairs = release.names(self.host)
        self._send(release.entries, log)
        prompts = release.prompts()
        scratch = _Scratch(self._daemon, pairs[0][0])
        with scratch.cleaned():
            log.stage("proving what Ollama made of it")
            made = {id(entry): self._make(scratch, entry, prompts, log) for entry in release.entries}
            with scratch.all_or_none() as place:
                for name, entry in pairs:
                    place(made[id(entry)].name, str(name))
            listed = self._daemon.listed()
        checks = tuple(check for name, entry in pairs for check in self._checks(name, entry))
        proven = tuple(check for one in made.values() for check in one.checks)
        digests = tuple(f"sha256:{listed[str(name)]['digest']}" for name, _ in pairs)
        shown = [name for name, entry in pairs if name.tag == entry.tags[0]]
        return Published(tuple(name for name, _ in pairs), digests, tuple(map(release.use, shown)), checks + proven)

    def _send(self, entries: Sequence[ReleaseEntry], log: Log) -> None:
        missing = {
            entry.gguf_blob.digest: entry for entry in entries if not self._daemon.has_blob(entry.gguf_blob.digest)
        }
        total, done = sum(entry.gguf_blob.size for entry in missing.values()), 0
        with log.bar(f"sending to {self._daemon.url}") as progress:
            for entry in missing.values():

                def sent(at: int, before: int = done) -> None:
                    progress(before + at, total)

                self._daemon.send_blob(entry.gguf, entry.gguf_blob, sent)
                done += entry.gguf_blob.size

    def _make(self, scratch: _Scratch, entry: ReleaseEntry, prompts: Sequence[Prompt], log: Log) -> _Made:
        """Make one model under a name that is not its own, and compare its prompts.

        Raises:
            ProofError: if a prompt is not the checkpoint's.
        """
        wanted = _request(entry)
        name = scratch.name(entry.tags[0])
        guess = _guess_in(self._daemon.create(name, wanted))
        if guess and not entry.template:
            log.note(f"Ollama took its template {guess!r} for this model, which has its own")
            if entry.fallback_template:
                wanted["template"] = entry.fallback_template
                self._daemon.create(name, wanted)
        if not prompts:
            return _Made(name, ())
        bare = scratch.name(f"{entry.tags[0]}-bare")  # what the user wants said first is not part of the comparison
        self._daemon.create(bare, {key: value for key, value in wanted.items() if key not in ("system", "messages")})
        return _Made(name, (self._compare(bare, entry, prompts),))

    def _compare(self, name: str, entry: ReleaseEntry, prompts: Sequence[Prompt]) -> Check:
        label = f"{entry.tags[0]} prompt in Ollama"
        for prompt in prompts:
            try:
                found = self._daemon.render(name, prompt.messages).removeprefix(prompt.bos)
            except AccessError as error:
                return Check(label, "not checked", f"{error.what}: {error.found}", "ollama run, and look at its log")
            if found != prompt.text:
                raise ProofError(
                    "Ollama would send another prompt than the checkpoint's own template renders",
                    where=entry.tags[0],
                    expected=repr(prompt.text)[:200],
                    found=repr(found)[:200],
                    hint="publish with --to local and `ollama pull --insecure` from there: a pull adds no template",
                )
        return Check(label, "proven", f"{len(prompts)} conversations rendered alike")

    def _checks(self, name: Name, entry: ReleaseEntry) -> Iterator[Check]:
        shown = self._daemon.show(str(name)) or {}
        differs = [what for what, is_same in _compared(shown, entry) if not is_same]
        detail = f"Ollama shows another {', '.join(differs)}" if differs else "shown as they were sent"
        yield Check(f"{name.tag} layers", "different" if differs else "proven", detail)


@dataclass(frozen=True)
class _Made:
    name: str
    checks: tuple[Check, ...]


class _Scratch:
    """Names beside the model's own, which nobody is meant to see for long."""

    def __init__(self, daemon: Daemon, like: Name) -> None:
        self._daemon = daemon
        self._like = like
        self._token = f"pkg-{secrets.token_hex(4)}"
        self._used: list[str] = []

    def name(self, label: str) -> str:
        """Make up a name; it is taken away in the end."""
        name = f"{self._like.host}/{self._like.repository}:{self._token}-{label}"[:400]
        self._used.append(name)
        return name

    @contextmanager
    def cleaned(self) -> Iterator[None]:
        """Take all names away at the end, as far as the daemon lets us."""
        try:
            yield
        finally:
            for name in self._used:
                with suppress(PipelineError):
                    self._daemon.delete(name)

    @contextmanager
    def all_or_none(self) -> Iterator[Any]:
        """Give what puts a model in its place; after an error, each name means again what it meant before."""
        placed: list[tuple[str, str | None]] = []

        def place(source: str, name: str) -> None:
            before = None
            if self._daemon.show(name) is not None:
                before = self.name(f"before-{len(placed)}")
                self._daemon.copy(name, before)
            placed.append((name, before))
            self._daemon.copy(source, name)

        try:
            yield place
        except BaseException:
            for name, before in reversed(placed):
                with suppress(PipelineError):
                    self._daemon.delete(name) if before is None else self._daemon.copy(before, name)
            raise


def _request(entry: ReleaseEntry) -> dict[str, Any]:
    """Write what /api/create takes; what is not said is left out."""
    said = {
        "template": entry.template,
        "system": entry.system,
        "parameters": dict(entry.params),
        "license": [text for text in entry.licenses if text],
        "messages": [{"role": role, "content": content} for role, content in entry.messages],
        "renderer": entry.renderer,
        "parser": entry.parser,
        "requires": entry.requires,
    }
    return {"files": {"model.gguf": entry.gguf_blob.digest}, **{key: value for key, value in said.items() if value}}


def _guess_in(said: Sequence[str]) -> str | None:
    return next((line.removeprefix(_GUESSED).strip() for line in said if line.startswith(_GUESSED)), None)


def _compared(shown: Mapping[str, Any], entry: ReleaseEntry) -> Iterator[tuple[str, bool]]:
    """Compare, part by part, what `/api/show` answers with what was sent."""
    yield "model", _gguf_digest(shown) == entry.gguf_blob.digest
    yield "system", shown.get("system", "") == (entry.system or "")
    yield "license", shown.get("license", "") == "\n".join(text for text in entry.licenses if text)
    messages = [(one["role"], one["content"]) for one in shown.get("messages") or ()]
    yield "messages", messages == list(entry.messages)
    if entry.template:
        yield "template", shown.get("template") == entry.template
    yield "requires", shown.get("requires", "") == (entry.requires or "")
    names = Counter(line.split(maxsplit=1)[0] for line in str(shown.get("parameters", "")).splitlines() if line)
    wanted = {name: len(value) if isinstance(value, list) else 1 for name, value in entry.params.items()}
    yield "parameters", names == Counter(wanted)


def _gguf_digest(shown: Mapping[str, Any]) -> str | None:
    found = _FROM.search(str(shown.get("modelfile", "")))
    return None if found is None else f"sha256:{found[1]}"
