"""Asks the Ollama on this machine which prompts it would send, before the model has its name.

The model that is asked has the real tokenizer, chat template and TEMPLATE, and next to no weights: it loads at once
and pushes nobody's model out of memory.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.errors import AccessError, InputError, ResourceError, ToolError
from pipeline.prove._stub import write_stub
from pipeline.prove._template import Template
from pipeline.prove._tokens import Tokens
from pipeline.prove.conversations import Conversation, Setting, ollama_request
from pipeline.prove.prompts import compare_prompts
from pipeline.runtime.ollama import daemon_url, daemon_version, rendered_prompt, unload
from pipeline.store import Manifest, Name, Store, config_bytes, gojson, hash_file, manifest, ollama_store_root
from pipeline.types import KV, Check, Layer

NAME = "prompt in Ollama"
_FOLDER = "registry.ollama.ai/gguf-pipeline/proof"
_COMMAND = "ollama serve"
_LEFT_BEHIND = timedelta(hours=1)


@dataclass(frozen=True)
class Ollama:
    """A daemon that has the model: see `Engine`."""

    url: str
    model: str
    texts: tuple[str, str]
    setting: Setting
    name: str = "Ollama"

    def render(self, conversation: Conversation) -> str:
        """Give the prompt that the daemon would send."""
        return rendered_prompt(self.url, self.model, ollama_request(conversation))


def ollama_check(
    template: Template,
    metadata: Mapping[str, KV],
    texts: tuple[str, str],
    tokens: Tokens | None,
    go_template: str | None,
    setting: Setting,
) -> Check:
    """Compare the prompts of the running Ollama with those that *template* renders, where one answers.

    Args:
        template: the checkpoint's own.
        metadata: the header of the GGUF.
        texts: what llama.cpp takes for BOS and EOS.
        tokens: compares tokens too.
        go_template: the TEMPLATE that the publication brings.
        setting: its system prompt and its messages.
    """
    url = daemon_url()
    if daemon_version(url) is None:
        return Check(NAME, "not checked", f"no Ollama answers at {url}", _COMMAND)
    layers = _layers(go_template, setting)
    try:
        with _standing_in(Store(ollama_store_root(), tool="ollama"), metadata, layers) as name:
            try:
                rendered_prompt(url, name, ollama_request(Conversation("", ({"role": "user", "content": "Hi"},))))
            except InputError as error:
                if error.found and "not found" in error.found:
                    raise ToolError("it has another store (OLLAMA_MODELS)", found=error.found) from error
            engine = Ollama(url, name, texts, setting)
            try:
                return compare_prompts(template, engine, tokens, plain=go_template is not None).check(NAME)
            finally:
                unload(url, name)
    except (ToolError, AccessError, ResourceError) as error:
        return Check(NAME, "not checked", f"the Ollama at {url}: {error.what} ({error.found})", _COMMAND)


def _layers(go_template: str | None, setting: Setting) -> dict[str, bytes]:
    """Give the texts that decide over prompts, by media type."""
    said = [{"role": role, "content": content} for role, content in setting.messages]
    texts = {
        manifest.TEMPLATE: (go_template or "").encode(),
        manifest.SYSTEM: (setting.system or "").encode(),
        manifest.MESSAGES: gojson.encode(said) if said else b"",
    }
    return {kind: data for kind, data in texts.items() if data}


@contextmanager
def _standing_in(store: Store, metadata: Mapping[str, KV], texts: Mapping[str, bytes]) -> Iterator[str]:
    """Put a model with this vocabulary and these texts into Ollama's store, for as long as the block lasts."""
    _remove_left_behind(store)
    name = Name.parse(f"{_FOLDER}:{secrets.token_hex(8)}")
    family = str(metadata["general.architecture"].value)
    with tempfile.TemporaryDirectory(prefix="gguf-pipeline-") as made:
        stub = Path(made) / "model.gguf"
        write_stub(stub, [kv for key, kv in metadata.items() if key.startswith("tokenizer.")])
        with store.writing():
            model = store.add_file(stub, hash_file(stub).digest)
            layers = tuple(Layer(kind, store.add_bytes(data)) for kind, data in texts.items())
            config = Layer(manifest.CONFIG, store.add_bytes(config_bytes(family, 1, "F16")))
            store.write_manifest(name, Manifest(config, (Layer(manifest.MODEL, model), *layers)))
    try:
        yield str(name)
    finally:
        store.remove(name)


def _remove_left_behind(store: Store) -> None:
    """Remove what a killed process left; another one at work is not older."""
    for entry in store.list():
        if str(entry.name).startswith(f"{_FOLDER}:") and datetime.now(UTC) - entry.modified > _LEFT_BEHIND:
            store.remove(entry.name)
