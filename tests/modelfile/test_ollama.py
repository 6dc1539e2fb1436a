"""A real Ollama reads what we write: the Modelfile's text, and the same store layers as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipeline.modelfile.families import families
from pipeline.modelfile.render import Overrides, make_modelfile, params_layer, render_text

pytestmark = pytest.mark.ollama

_TEXTS = (
    'Be "brief".\n  # no comment\n',
    '"quoted"',
    '"""',
    '""""""',
    " blanks ",
    "\ttabs\t",
    "\\n {{ .X }} \\",
    "a\r\nb",
    '"" x',
    '"a\nb"',
    "漢 🦙",
)


def _header_only(path: Path, chat_template: str) -> None:
    """Write a GGUF that Ollama's create accepts: it reads no weights."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_chat_template(chat_template)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layers(store: Path) -> dict[str, list[str]]:
    """Give the texts of the created model's layers, by the last part of their media types."""
    (manifest,) = (path for path in (store / "manifests").rglob("latest"))
    layers: dict[str, list[str]] = {}
    for layer in json.loads(manifest.read_text())["layers"]:
        kind = layer["mediaType"].rpartition(".")[2]
        if kind != "model":
            blob = store / "blobs" / layer["digest"].replace(":", "-")
            layers.setdefault(kind, []).append(blob.read_bytes().decode())
    return layers


def test_create_stores_exactly_what_was_meant(ollama: Any, demo: Path, workdir: Path) -> None:
    """`ollama create` of our text gives, byte for byte, the system, template, licence, message and params we meant."""
    chat_template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    _header_only(workdir / "my demo.gguf", chat_template)
    for text in _TEXTS:
        made = make_modelfile(
            chat_template=chat_template,
            generation_config={"temperature": 0.123456789, "top_k": 1, "repetition_penalty": 1.0},
            eos_texts=["<|im_end|>", "<|endoftext|>"],
            licenses=[text, "a second one\n"],
            overrides=Overrides(num_ctx=512, system=text, messages=(("user", text), ("assistant", "ok: yes"))),
            with_template=True,
            families=families(),
        )
        (workdir / "Modelfile").write_text(render_text(made, "./my demo.gguf"), encoding="utf-8", newline="")
        ollama.cli("create", "made", "-f", str(workdir / "Modelfile"))
        layers = _layers(ollama.models)
        params = json.dumps(params_layer(made), separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
        assert layers.pop("params") == [params + "\n"]
        assert [(m["role"], m["content"]) for m in json.loads(layers.pop("messages")[0])] == list(made.messages)
        assert layers == {"template": [made.template], "system": [text], "license": [text, "a second one\n"]}
        shown = ollama.post("/api/show", model="made")
        assert (shown["system"], shown["template"]) == (text, made.template)
