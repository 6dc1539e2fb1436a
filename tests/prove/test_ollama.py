"""The prompts of a real Ollama beside those of the checkpoint's own template, before anything is published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.job import Job
from pipeline.modelfile.families import families, match_family
from pipeline.prove._ollama import NAME, ollama_check
from pipeline.prove._template import Template
from pipeline.prove.conversations import BARE, Setting
from pipeline.runtime import LlamaInstall
from pipeline.store import Manifest, Name, Store
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.tokenizer import read_tokenizer
from pipeline.types import KV, Check, Layer, string

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
CHECKPOINTS = ("qwen2", "qwen3", "llama3", "llama2", "gemma", "gpt_oss", "deepseek_v3", "granite", "smollm3", "glm4")
TEMPLATES = (
    "Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "google-gemma-2-2b-it",
    "mistralai-Mistral-Nemo-Instruct-2407", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "openai-gpt-oss-120b",
    "HuggingFaceTB-SmolLM3-3B", "ibm-granite-granite-4.0", "GLM-4.6", "google-gemma-4-31B-it", "LFM2.5-Instruct",
)  # fmt: skip

pytestmark = pytest.mark.ollama


@pytest.fixture
def daemon(ollama: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A running Ollama that is this machine's."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.host)
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama.models))
    return ollama


def _check(
    template: Template, family: str, metadata: tuple[KV, ...], texts: tuple[str, str], setting: Setting = BARE
) -> Check:
    header = {kv.key: kv for kv in (string("general.architecture", family), *metadata)}
    return ollama_check(template, header, texts, None, None, setting)


def test_ollama_prompts_as_the_small_checkpoints_do(daemon: Any) -> None:
    """Tools, calls, thoughts, blanks: whatever a model can be asked, Ollama sends what the template renders."""
    for name in CHECKPOINTS:
        made = read_tokenizer(FIXTURES / name, {})
        assert made.chat_template is not None
        template = Template(made.chat_template, made.tool_template, made.bos or "", made.eos or "")
        check = _check(template, name, made.metadata, (made.bos or "", made.eos or ""))
        assert check.state == "proven", (name, check.detail)
        assert (name == "qwen3") == ("Ollama takes thoughts out of earlier answers" in check.detail), check.detail
    assert Store(daemon.models).list() == ()
    assert not [path for path in (daemon.models / "blobs").iterdir() if path.name.startswith("sha256")]


def test_ollama_prompts_as_real_templates_do(daemon: Any, llama: LlamaInstall, vocabulary: tuple[KV, ...]) -> None:
    """Templates of real models, too, but for the limits that the page lists."""
    assert llama.source_dir is not None
    for name in TEMPLATES:
        source = (llama.source_dir / "models" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        keys = (*vocabulary, string("tokenizer.chat_template", source))
        texts = ("<|endoftext|>", "<|im_end|>")
        check = _check(Template(source, None, *texts), "qwen2", keys, texts)
        assert check.state == "proven", (name, check.detail)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("chatml", "teknium/OpenHermes-2.5-Mistral-7B"),
        ("llama3", "Llama-3"),
        ("gemma", "google-gemma-2-2b-it"),
        ("mistral", "mistralai-Mistral-Nemo-Instruct-2407"),
    ],
)
def test_go_templates_say_what_the_models_own_do(
    family: str,
    name: str,
    ollama_root: Path,
    oracle: Callable[[str], Any],
    llama: LlamaInstall,
    vocabulary_with: Callable[[str], tuple[KV, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An Ollama that is told to use TEMPLATEs sends what the model's own template renders, where a TEMPLATE can."""
    assert llama.source_dir is not None
    real = oracle("chat_templates")
    source = (real.from_files(llama.source_dir) | real.from_tests(llama.source_dir))[name]
    own = families()[family]
    assert match_family(source, families()) == own
    bos, eos = {"gemma": ("<bos>", "<eos>"), "mistral": ("<s>", "</s>")}.get(family, ("<|endoftext|>", "<|im_end|>"))
    keys = (*vocabulary_with(bos), string("tokenizer.chat_template", source))
    template = Template(source, None, bos, eos)
    header = {kv.key: kv for kv in (string("general.architecture", "llama"), *keys)}
    with oracle("ollama").running_ollama(ollama_root, tmp_path / "ollama", OLLAMA_GO_TEMPLATE="1") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        monkeypatch.setenv("OLLAMA_MODELS", str(server.models))
        check = ollama_check(template, header, (bos, eos), None, own.template, BARE)
        assert "go_template" in server.log
    assert check.state == "proven", check.detail
    assert "limits" not in check.detail
    n_compared = int(check.detail.split()[0])
    assert n_compared >= (5 if family == "gemma" else 8)  # Gemma's refuses a system prompt


def test_a_system_prompt_and_messages_stand_before_a_conversation(daemon: Any, demo: Path) -> None:
    """What the publication says first is where our rendering has it; a conversation's own system prompt wins."""
    made = read_tokenizer(demo, {})
    assert made.chat_template is not None
    template = Template(made.chat_template, None, made.bos or "", made.eos or "")
    setting = Setting("Be kind.", (("user", "Ping?"), ("assistant", "Pong & <b>.")))
    check = _check(template, "qwen2", made.metadata, (",", "<|im_end|>"), setting)
    assert (check.state, "limits" in check.detail) == ("proven", False), check.detail


def test_another_template_is_found(daemon: Any, demo: Path) -> None:
    """What Ollama sends for a model with another template differs, and is shown."""
    made = read_tokenizer(demo, {})
    check = _check(Template("{% for m in messages %}{{ m.content }}{% endfor %}"), "qwen2", made.metadata, ("", ""))
    assert check.state == "different"
    assert "Ollama gives '<|im_start|>" in check.detail


def test_publish_asks_ollama(daemon: Any, silent_log: Any) -> None:
    """A publication into Ollama's store is proven by Ollama itself, and only the model is there afterwards."""
    report = flow.package(Job("demo", ("Q4_0",), ("ollama",)), silent_log)
    (check,) = (check for check in report.checks if check.name == NAME)
    assert check.state == "proven"
    assert "texts and tokens" in check.detail
    assert {entry.name.tag for entry in Store(daemon.models).list()} == {"Q4_0", "latest"}


def test_no_ollama_is_said(monkeypatch: pytest.MonkeyPatch, demo: Path) -> None:
    """Where nobody answers the check says so, and how to get it."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    check = _check(Template("x"), "qwen2", read_tokenizer(demo, {}).metadata, ("", ""))
    assert (check.state, check.command) == ("not checked", "ollama serve")


def test_an_ollama_with_another_store_is_said(daemon: Any, demo: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A daemon that does not see what we write is not taken for one that differs."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    check = _check(Template("x"), "qwen2", read_tokenizer(demo, {}).metadata, ("", ""))
    assert check.state == "not checked"
    assert "another store" in check.detail


def test_what_a_killed_publication_left_is_removed(daemon: Any, demo: Path) -> None:
    """A stand-in of an hour ago goes; one that another process may be asking stays; others' models are not touched."""
    store = Store(daemon.models)
    blob = store.add_bytes(b"{}")
    names = [Name.parse(f"registry.ollama.ai/gguf-pipeline/{rest}") for rest in ("proof:old", "proof:new", "mine:old")]
    for name in names:
        store.write_manifest(name, Manifest(Layer(CONFIG, blob), (Layer(MODEL, blob),)))
        if name.tag == "old":
            os.utime(store.manifest_path(name), (1, 1))
    assert _check(Template("x"), "qwen2", read_tokenizer(demo, {}).metadata, ("", "")).state == "different"
    assert {str(entry.name) for entry in store.list()} == {str(name) for name in names[1:]}
