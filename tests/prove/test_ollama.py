"""The prompts of a real Ollama beside those of the checkpoint's own template, before anything is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.job import Job
from pipeline.prove._ollama import NAME, ollama_check
from pipeline.prove._template import Template
from pipeline.prove.prompts import render_all
from pipeline.runtime import LlamaInstall
from pipeline.store import Store
from pipeline.tokenizer import read_tokenizer
from pipeline.types import KV, Check, boolean, string

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


def _check(template: Template, family: str, metadata: tuple[KV, ...], texts: tuple[str, str]) -> Check:
    header = {kv.key: kv for kv in (string("general.architecture", family), *metadata)}
    return ollama_check(template, header, texts, None, render_all(template), None)


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


def test_ollama_prompts_as_real_templates_do(daemon: Any, llama: LlamaInstall, demo: Path) -> None:
    """Templates of real models, too, but for the limits that the page lists."""
    assert llama.source_dir is not None
    made = read_tokenizer(demo, {})
    kept = [kv for kv in made.metadata if "template" not in kv.key and "_bos_" not in kv.key]
    eos = next(kv for kv in kept if kv.key == "tokenizer.ggml.eos_token_id")
    tokens = next(kv.value for kv in kept if kv.key == "tokenizer.ggml.tokens")
    bos = replace(eos, key="tokenizer.ggml.bos_token_id", value=tokens.index("<|endoftext|>"))
    for name in TEMPLATES:
        source = (llama.source_dir / "models" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        keys = (*kept, bos, boolean("tokenizer.ggml.add_bos_token", True), string("tokenizer.chat_template", source))
        texts = ("<|endoftext|>", "<|im_end|>")
        check = _check(Template(source, None, *texts), "qwen2", keys, texts)
        assert check.state == "proven", (name, check.detail)


def test_another_template_is_found(daemon: Any, demo: Path) -> None:
    """What Ollama sends for a model with another template differs, and is shown."""
    made = read_tokenizer(demo, {})
    check = _check(Template("{% for m in messages %}{{ m.content }}{% endfor %}"), "qwen2", made.metadata, ("", ""))
    assert check.state == "different"
    assert "Ollama gives '<|im_start|>" in check.detail


def test_publish_asks_ollama(daemon: Any, silent_log: Any) -> None:
    """A publication into Ollama's store is proven by Ollama itself, and only the model is there afterwards."""
    report = flow.package(Job("demo", ("Q4_0",), "ollama"), silent_log)
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
