"""A real Ollama pulls the demo from our registry into an empty store, and answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.prove.prompt import render_chats, variables

pytestmark = [pytest.mark.native, pytest.mark.ollama]

N_QUESTIONS = 40

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is GGUF?"}],
    [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is Q4_K_M?"}],
    [
        {"role": "user", "content": "  spaces around  "},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "什么是 GGUF？ 🦙"},
    ],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "line\nbreak"}],
]


@pytest.fixture
def pulled(ollama: Any, registry: str) -> tuple[Any, str]:
    """An Ollama that has just pulled both quantizations, and the model's name without its tag."""
    name = f"{registry}/library/demo"
    for tag in ("Q4_K_M", "Q8_0"):
        ollama.cli("pull", "--insecure", f"{name}:{tag}")
    return ollama, name


@pytest.mark.parametrize("tag", ["Q4_K_M", "Q8_0"])
def test_answers_trained_questions_word_for_word(
    pulled: tuple[Any, str], tag: str, trained: list[tuple[str, str]]
) -> None:
    """The pulled model says exactly what the checkpoint was trained to say, without any setting by the user."""
    ollama, name = pulled
    wrong = []
    for question, answer in trained[:N_QUESTIONS]:
        body = {"model": f"{name}:{tag}", "messages": [{"role": "user", "content": question}]}
        said = ollama.post("/api/chat", **body)["message"]["content"]
        if said != answer:
            wrong.append((question, answer, said))
    assert wrong == []


def test_the_prompt_is_the_checkpoints_own(pulled: tuple[Any, str], demo: Path) -> None:
    """What Ollama would send equals what the checkpoint's template renders."""
    ollama, name = pulled
    template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    for messages in CONVERSATIONS:
        answer = ollama.post(
            "/api/chat", model=f"{name}:Q4_K_M", messages=messages, truncate=False, _debug_render_only=True
        )
        rendered = answer["_debug_info"]["rendered_template"]
        assert render_chats(template, [variables(messages)]) == [rendered]


def test_show_tells_what_was_packaged(pulled: tuple[Any, str], demo: Path) -> None:
    """`ollama show` lists family, size, quantization, capabilities, parameters and licence as they were meant."""
    ollama, name = pulled
    shown = ollama.post("/api/show", model=f"{name}:Q4_K_M")
    details = shown["details"]
    assert (details["family"], details["parameter_size"], details["quantization_level"]) == ("qwen2", "2.62M", "Q4_K_M")
    assert shown["capabilities"] == ["completion"]
    assert shown["license"] == (demo / "LICENSE").read_text(encoding="utf-8")
    parameters = [line.split(maxsplit=1) for line in shown["parameters"].splitlines()]
    assert ["temperature", "0.01"] in parameters
    assert ["top_k", "1"] in parameters
    assert ["stop", '"<|im_end|>"'] in parameters
    text = ollama.cli("show", f"{name}:Q4_K_M").stdout
    assert "Q4_K_M" in text
    assert "qwen2" in text


def test_blobs_arrive_unchanged(pulled: tuple[Any, str], published: Any) -> None:
    """Every blob in Ollama's store is byte for byte the one in ours, and the model has the same id."""
    ollama, name = pulled
    for file in published.report["files"]:
        blob = ollama.models / "blobs" / file["digest"].replace(":", "-")
        assert "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest() == file["digest"]
    listed = {model["name"]: model["digest"] for model in ollama.get("/api/tags")["models"]}
    for file in published.report["files"]:
        assert listed[f"{name}:{file['recipe']}"] == file["manifest"].removeprefix("sha256:")


def test_latest_is_the_first_quantization(ollama: Any, registry: str, published: Any) -> None:
    """A pull without a tag gives the default quantization."""
    ollama.cli("pull", "--insecure", f"{registry}/library/demo")
    (model,) = ollama.get("/api/tags")["models"]
    assert model["digest"] == published.report["files"][0]["manifest"].removeprefix("sha256:")


def test_target_ollama_is_seen_at_once(ollama: Any, cli: Any) -> None:
    """`publish --to ollama` writes into the store of a running Ollama, which lists and runs it without a restart."""
    done = cli("publish", "demo", "--to", "ollama", OLLAMA_MODELS=str(ollama.models), OLLAMA_HOST=ollama.host)
    assert "[ok] listed by Ollama: proven" in done.stdout
    (model, _latest) = sorted(m["name"] for m in ollama.get("/api/tags")["models"])
    answer = ollama.post("/api/chat", model=model, messages=[{"role": "user", "content": "What is Q2_K?"}])
    assert answer["message"]["content"].startswith("Q2_K is the smallest K-quant")


def test_create_from_our_modelfile_keeps_the_digest(ollama: Any, cli: Any, tmp_path: Path) -> None:
    """`ollama create` from our Modelfile stores our bytes and what the Modelfile says."""
    cli("convert", "demo", "-o", tmp_path / "demo-f.gguf")
    cli("quantize", tmp_path / "demo-f.gguf", "-o", tmp_path / "demo-Q4_K_M.gguf", "--quant", "Q4_K_M")
    system = 'say "hi" \\ and\nnew line'
    cli("modelfile", "demo", "--system", system, "-o", tmp_path / "Modelfile")
    ollama.cli("create", "mine", "-f", str(tmp_path / "Modelfile"))
    shown = ollama.post("/api/show", model="mine")
    assert shown["system"] == system
    digest = hashlib.sha256((tmp_path / "demo-Q4_K_M.gguf").read_bytes()).hexdigest()
    assert (ollama.models / "blobs" / f"sha256-{digest}").exists()
