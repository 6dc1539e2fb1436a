"""`run`: a conversation with a published model or a GGUF, through llama.cpp."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import InputError, UnsupportedError
from pipeline.gguf import read_parts
from pipeline.runtime import ChatSession, open_runtime
from pipeline.store import Store, local_name, local_store_root
from pipeline.store.manifest import MESSAGES, PARAMS, SYSTEM

# Ollama's names of the settings that llama.cpp's server takes too; where it has another name, that one.
_OPTIONS = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "num_predict": "max_tokens", "repeat_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
}  # fmt: skip
_DEFAULT_CONTEXT = 4096
_OF_MESSAGE = ("role", "content")

Message = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What to run: the GGUF, and what its publication says: system prompt, first messages, parameters."""

    gguf: Path
    system: str | None = None
    messages: tuple[Message, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    def beginning(self, system: str | None = None) -> list[Message]:
        """Return what a conversation begins with, put together as Ollama does (`ChatHandler`, server/routes.go).

        The publication's system prompt goes before all; a *system* prompt of one's own replaces it, and, being a part
        of the request, comes after the publication's messages.
        """
        before, after = (None, system) if system else (self.system, None)
        return [*_system(before), *self.messages, *_system(after)]


class Conversation:
    """Turns of one chat after its *beginning*; each answer is remembered."""

    def __init__(self, session: ChatSession, beginning: list[Message], options: dict[str, Any]) -> None:
        self.kind = session.kind
        self._session = session
        self._options = options
        self._messages = beginning

    def ask(self, text: str, stream_to: Callable[[str], object] | None = None) -> str:
        """Send *text* as the user and return the answer."""
        self._messages.append({"role": "user", "content": text})
        answer = self._session.chat(self._messages, stream_to=stream_to, options=self._options)
        self._messages.append({"role": "assistant", "content": answer})
        return answer


def find_target(ref: str) -> Target:
    """Find a GGUF by its path, or a published model by its name.

    Raises:
        UsageError: if no such model is published.
        InputError: if there is no such file.
        FormatError: if the file is no GGUF, or the publication is broken.
        UnsupportedError: if the model writes no text.
    """
    if ref.endswith(".gguf") or ref.startswith(("/", "./", "../")):
        path = Path(ref)
        if not path.exists():
            raise InputError("no such file", where=ref, hint="`gguf-pipeline list` shows the published models")
        return Target(_require_text(path, ref))
    store = Store(local_store_root())
    name = local_name(ref)
    gguf = store.model_path(name)
    layers = {layer.media_type: store.blob_path(layer.blob.digest) for layer in store.read_manifest(name).layers}
    # Anybody with the token may have pushed them, so they are read as input.
    system = strict_json.read_text(layers[SYSTEM]) if SYSTEM in layers else None
    parameters = strict_json.read_json(layers[PARAMS]) if PARAMS in layers else {}
    strict_json.optional(parameters, "num_ctx", int, layers.get(PARAMS, gguf), "num_ctx")
    messages = _read_messages(layers[MESSAGES]) if MESSAGES in layers else ()
    return Target(_require_text(gguf, ref), system, messages, parameters)


def _system(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _read_messages(path: Path) -> tuple[Message, ...]:
    found = []
    for number, one in enumerate(strict_json.read_list(path)):
        message = strict_json.expect(one, dict, path, f"message {number}")
        pair = [strict_json.expect(message.get(key), str, path, f"message {number}.{key}") for key in _OF_MESSAGE]
        found.append(dict(zip(_OF_MESSAGE, pair, strict=True)))
    return tuple(found)


def _require_text(gguf: Path, ref: str) -> Path:
    """Refuse what llama.cpp cannot load, or would load and then die of, in better words than its log has.

    Return what to load: of a split model the first part.

    Raises:
        FormatError: if the file is no GGUF.
        InputError: if a part of it is missing.
        UnsupportedError: if the model writes no text.
    """
    first = read_parts(gguf)[0]
    metadata = first.metadata
    is_encoder = any(key.endswith(".attention.causal") and kv.value is False for key, kv in metadata.items())
    if is_encoder or any(key.endswith(".pooling_type") for key in metadata):
        raise UnsupportedError(
            "an embedding model makes vectors: there is nothing to chat with",
            where=ref,
            hint="publish it, and ask Ollama's /api/embed; `publish` prints the command",
        )
    return first.path


@contextlib.contextmanager
def open_chat(ref: str, ctx: int | None = None, system: str | None = None) -> Iterator[Conversation]:
    """Load what *ref* names and hand out a conversation with it.

    Args:
        ref: a published model's name, or the path of a GGUF.
        ctx: context in tokens; without it the publication's num_ctx, at most what the model was trained for.
        system: replaces the publication's system prompt; its messages stay.

    Raises:
        PipelineError: as `find_target`.
        ToolError: if no llama.cpp is at hand, or it cannot load the file.
    """
    target = find_target(ref)
    options = {_OPTIONS[name]: value for name, value in target.parameters.items() if name in _OPTIONS}
    n_ctx = ctx or target.parameters.get("num_ctx") or _DEFAULT_CONTEXT
    with open_runtime(target.gguf, n_ctx=n_ctx) as session:
        yield Conversation(session, target.beginning(system), options)
