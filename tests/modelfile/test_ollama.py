"""A real Ollama has what we meant, field by field: created from our Modelfile's text, and published into its store."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import flow, publish
from pipeline.errors import InputError
from pipeline.modelfile import Overrides, families, make_modelfile, params_layer, render_text
from pipeline.modelfile._engine import PARSERS, RENDERERS
from pipeline.modelfile._parameters import IGNORED, TYPES
from pipeline.types import Blob, Modelfile

pytestmark = pytest.mark.ollama

NAME = "localhost:11500/library/made:Q4_K_M"
_TEXTS = (
    'Be "brief".\n  # no comment\n',
    '"quoted"',
    '"""',
    '""""""',
    " blanks ",
    "trailing blanks  \n  ",
    "\ttabs\t",
    "\\n {{ .X }} \\",
    "a\r\nb",
    '"" x',
    '"a\nb"',
    "漢 🦙",
)
# Few characters, so that the nasty ones meet; and any text at all.
_nasty = st.one_of(st.text(st.sampled_from('"""\n\r\t  #\\{}<&:ab漢'), min_size=1, max_size=12), st.text(min_size=1))
_REAL = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.1, "presence_penalty": 0.5}
_EVERY = tuple(
    (name, {int: 7, float: _REAL.get(name, 0.25), bool: True, str: "one"}[kind]) for name, kind in TYPES.items()
)


def _header_only(path: Path) -> Path:
    """Write a GGUF that Ollama's create accepts: it reads no weights."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_chat_template("{{ messages }}" + "unlike all that Ollama knows " * 8)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _said(text: str) -> Modelfile:
    """Say *text* everywhere where a Modelfile has a text, and every parameter."""
    return make_modelfile(
        chat_template=None,
        generation_config={},
        eos_texts=[],
        licenses=[text, "a second one\n"],
        overrides=Overrides(
            parameters=(*_EVERY, ("stop", text), ("stop", "<|im_end|>"), ("mirostat", 1)),
            system=text,
            messages=(("system", text), ("user", text), ("assistant", "ok: yes")),
            template="{{ .Prompt }}",
            requires="v0.31.0-rc1+build",
            renderer="qwen3-coder",
            parser="qwen3-coder",
        ),
        with_template=False,
        families=families(),
    )


def _parameters(shown: str) -> dict[str, Any]:
    """Read the lines of `parameters`: a name, and a value as Go writes it."""
    found: dict[str, Any] = {}
    for line in shown.splitlines():
        name, _, value = line.partition(" ")
        text = value.strip()
        parsed = {"true": True, "false": False}[text] if text in ("true", "false") else ast.literal_eval(text)
        if name == "stop":
            found.setdefault(name, []).append(parsed)
        else:
            found[name] = parsed
    return found


def _has(shown: dict[str, Any], made: Modelfile, config: dict[str, Any]) -> None:
    """What `/api/show` answers, and the config beside it, are what was meant, in every field."""
    assert _parameters(shown["parameters"]) == params_layer(made)
    assert shown.get("system") == made.system
    assert shown["template"] == made.template
    assert shown["license"] == "\n".join(made.licenses)
    assert [(m["role"], m["content"]) for m in shown["messages"]] == list(made.messages)
    assert shown["requires"] == made.requires
    assert (config["renderer"], config["parser"], config["requires"]) == (made.renderer, made.parser, made.requires)


@pytest.fixture
def put(ollama: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch, silent_log: Any) -> Callable[[Modelfile], None]:
    """Publish a Modelfile around a small GGUF into the store of the running Ollama, and ask for it."""
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama.models))
    monkeypatch.setenv("OLLAMA_HOST", ollama.host)

    def run(made: Modelfile) -> None:
        path = _header_only(workdir / "published.gguf")
        data = path.read_bytes()
        entry = publish.ReleaseEntry(
            ("Q4_K_M",),
            path,
            Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)),
            "qwen2",
            128,
            "Q4_K_M",
            template=made.template,
            system=made.system,
            params=params_layer(made),
            messages=made.messages,
            licenses=made.licenses,
            renderer=made.renderer,
            parser=made.parser,
            requires=made.requires,
        )
        with publish.open_target("ollama") as target:
            target.publish(publish.Release("library", "made", (entry,)), silent_log)
        _has(ollama.post("/api/show", model=NAME), made, _config(ollama.models, "Q4_K_M"))

    return run


@pytest.fixture
def create(ollama: Any, workdir: Path) -> Callable[[Modelfile], None]:
    """Let `ollama create` read a Modelfile's text, and ask for what came of it."""
    _header_only(workdir / "my demo.gguf")

    def run(made: Modelfile) -> None:
        text = render_text(made, "./my demo.gguf")
        (workdir / "Modelfile").write_text(text, encoding="utf-8", newline="")
        ollama.cli("create", "made", "-f", str(workdir / "Modelfile"))
        _has(ollama.post("/api/show", model="made"), made, _config(ollama.models, "latest"))

    return run


def test_create_stores_exactly_what_was_meant(ollama: Any, create: Callable[[Modelfile], None]) -> None:
    """`ollama create` of our text gives every field as it was meant, whatever quotes and breaks stand in it."""
    for text in _TEXTS:
        made = _said(text)
        create(made)
        layers = _layers(ollama.models)
        assert layers["license"] == list(made.licenses)
        assert layers["params"] == [_go_json(params_layer(made)) + "\n"]


def test_publishing_stores_exactly_what_was_meant(put: Callable[[Modelfile], None]) -> None:
    """A model put into the store has every field as it was meant, and the config says renderer, parser and version."""
    for text in (*_TEXTS, "\x00\x0b\u00a0\u2028", 'so """ \nb'):
        made = _said(text)
        put(made)


def test_any_text_survives_both_ways(put: Callable[[Modelfile], None], create: Callable[[Modelfile], None]) -> None:
    """Any text that can be said comes back: by publishing every one, by a Modelfile those that its parser can hold."""
    sayable = []

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(_nasty)
    def check(text: str) -> None:
        made = _said(text)
        put(made)
        try:
            render_text(made, "x")
        except InputError:
            return
        sayable.append(text)
        if len(sayable) <= 10:
            create(made)

    check()
    assert len(sayable) > 10


def test_ignored_parameters_are_what_ollama_ignores(ollama: Any, create: Callable[[Modelfile], None]) -> None:
    """Each name that we leave out with a note is one that Ollama warns of and drops; all others it takes."""
    create(_said("base"))
    for name in sorted(IGNORED):
        Path(ollama.home / "Modelfile").write_text(f"FROM made\nPARAMETER {name} 1\n")
        done = ollama.cli("create", "dropped", "-f", str(ollama.home / "Modelfile"))
        assert name in done.stdout + done.stderr
        assert name not in ollama.post("/api/show", model="dropped").get("parameters", "")


def test_what_we_refuse_ollama_refuses(ollama: Any, create: Callable[[Modelfile], None]) -> None:
    """Neither typical_p nor an unknown name, nor a version that is none, gets past Ollama's own command."""
    create(_said("base"))
    for line in ("PARAMETER typical_p 0.9", "PARAMETER numa true", "REQUIRES 01.2", "REQUIRES new", "REQUIRES 1.2.3.4"):
        Path(ollama.home / "Modelfile").write_text(f"FROM made\n{line}\n")
        assert ollama.cli("create", "refused", "-f", str(ollama.home / "Modelfile"), check=False).returncode != 0
    for version in ("1", "0.34", "v0.34.1", "1.0.0-rc.1+a.b"):
        Path(ollama.home / "Modelfile").write_text(f"FROM made\nREQUIRES {version}\n")
        ollama.cli("create", "taken", "-f", str(ollama.home / "Modelfile"))
        assert ollama.post("/api/show", model="taken")["requires"] == version.removeprefix("v")


@pytest.mark.native
def test_the_known_renderers_and_parsers_are_ollamas(ollama: Any, demo: Path, workdir: Path, silent_log: Any) -> None:
    """Ollama renders with each renderer that we let pass, not with another; each parser but one brings a capability."""
    flow.convert(str(demo), workdir / "demo.gguf", "F16", silent_log)
    (workdir / "Modelfile").write_text("FROM ./demo.gguf\n")
    ollama.cli("create", "base", "-f", str(workdir / "Modelfile"))
    messages = [{"role": "user", "content": "hi"}]
    for name in sorted(RENDERERS):
        ollama.post("/api/create", model="made", **{"from": "base"}, renderer=name, parser="passthrough")
        answer = ollama.post("/api/chat", model="made", messages=messages, _debug_render_only=True)
        assert "hi" in answer["_debug_info"]["rendered_template"], name
    ollama.post("/api/create", model="made", **{"from": "base"}, renderer="qwen9")
    with pytest.raises(AssertionError, match="unknown renderer"):
        ollama.post("/api/chat", model="made", messages=messages, _debug_render_only=True)
    silent = set()
    for name in sorted(PARSERS):
        ollama.post("/api/create", model="made", **{"from": "base"}, parser=name)
        if ollama.post("/api/show", model="made")["capabilities"] == ["completion"]:
            silent.add(name)
    assert silent == {"passthrough"}


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


def _config(store: Path, tag: str) -> Any:
    """Give the created model's config."""
    (manifest,) = (path for path in (store / "manifests").rglob(tag))
    digest = json.loads(manifest.read_text())["config"]["digest"]
    return json.loads((store / "blobs" / digest.replace(":", "-")).read_text())


def _go_json(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
