"""`ollama show` lists what a model can do as its checkpoint has it, and each of these works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.native, pytest.mark.ollama]

CAPABILITIES = {
    "starcoder2": ["completion", "insert"],
    "gpt2": ["completion"],
    "llama2": ["completion"],
    "gpt_oss": ["completion", "thinking"],
    "bert": ["embedding"],
    "xlm_roberta": ["embedding"],
    "nomic_bert": ["embedding"],
}
# Chat templates as the models' makers wrote them, by their names in llama.cpp's collection.
TEMPLATES = {
    "google-gemma-2-2b-it": ["completion"],
    "meta-llama-Llama-3.1-8B-Instruct": ["completion", "tools"],
    "Qwen-Qwen2.5-7B-Instruct": ["completion", "tools"],
    "Qwen-Qwen3-0.6B": ["completion", "thinking", "tools"],
}


@pytest.fixture
def publish(ollama: Any, cli: Any, repository: Path) -> Callable[..., str]:
    """Publish the small checkpoint of an architecture into the running Ollama's store; the model's name there."""

    def run(model: str | Path, *options: str) -> str:
        folder = repository / "tests" / "fixtures" / "arch" / model
        cli(
            *("publish", folder, "--to", "ollama", "--quant", "Q8_0", "--proof", "none", "--errors", "none", *options),
            OLLAMA_MODELS=str(ollama.models),
            OLLAMA_HOST=ollama.host,
        )
        return f"localhost:11500/library/{folder.name}:Q8_0"

    return run


def _prompt(ollama: Any, path: str, **request: Any) -> str:
    answer = ollama.post(path, **request, truncate=False, _debug_render_only=True)
    return str(answer["_debug_info"]["rendered_template"])


@pytest.mark.parametrize("name", CAPABILITIES)
def test_show_lists_what_the_checkpoint_can_do(name: str, ollama: Any, publish: Callable[..., str]) -> None:
    """The list is the checkpoint's: tools and thinking by its chat template, insert by its training, no more."""
    assert sorted(ollama.post("/api/show", model=publish(name))["capabilities"]) == sorted(CAPABILITIES[name])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_real_template_tells_tools_and_thinking(
    template: str, ollama: Any, publish: Callable[..., str], repository: Path, tmp_path: Path, llama: Any
) -> None:
    """Tools and thinking are those of the checkpoint's own template, which Ollama finds in the file."""
    folder = shutil.copytree(repository / "tests" / "fixtures" / "arch" / "qwen3", tmp_path / "own-template")
    shutil.copy(llama.source_dir / "models" / "templates" / f"{template}.jinja", folder / "chat_template.jinja")
    assert sorted(ollama.post("/api/show", model=publish(folder))["capabilities"]) == TEMPLATES[template]


def test_a_decoder_that_pools_makes_vectors(
    ollama: Any, publish: Callable[..., str], repository: Path, tmp_path: Path
) -> None:
    """A model of Qwen's kind with a pooling beside it is an embedding model, and Ollama makes vectors with it."""
    folder = shutil.copytree(repository / "tests" / "fixtures" / "arch" / "qwen3", tmp_path / "qwen3-embedding")
    shutil.copy(repository / "tests" / "fixtures" / "arch" / "bert" / "modules.json", folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    name = publish(folder, "--proof", "quick")
    assert ollama.post("/api/show", model=name)["capabilities"] == ["embedding"]
    first, second, again = ollama.post("/api/embed", model=name, input=["one", "another", "one"])["embeddings"]
    assert first == again != second
    assert abs(sum(value * value for value in first) - 1) < 1e-5


def test_a_base_model_is_sent_the_text_alone(ollama: Any, publish: Callable[..., str]) -> None:
    """Nothing is put around the text of a model without a chat template; `suffix` is refused where it can not fill."""
    name = publish("gpt2")
    assert _prompt(ollama, "/api/generate", model=name, prompt="Once upon  ") == "Once upon  "
    with pytest.raises(AssertionError, match="does not support insert"):
        ollama.post("/api/generate", model=name, prompt="a", suffix="b")


def test_filling_in_the_middle(ollama: Any, publish: Callable[..., str]) -> None:
    """A suffix gives the prompt that the model's makers wrote, and the model writes on from there."""
    name = publish("starcoder2")
    code = {"prompt": "def f(a):\n", "suffix": "    return b\n"}
    wanted = "<fim_prefix>def f(a):\n<fim_suffix>    return b\n<fim_middle>"
    assert _prompt(ollama, "/api/generate", model=name, **code) == wanted
    assert _prompt(ollama, "/api/generate", model=name, prompt="def f(") == "def f("
    assert _prompt(ollama, "/api/chat", model=name, messages=[{"role": "user", "content": "x = "}]) == "x = "
    options = {"num_predict": 3, "temperature": 0}
    filled = ollama.post("/api/generate", model=name, **code, options=options)
    assert filled["done_reason"] in ("length", "stop")
    raw = ollama.post("/api/generate", model=name, prompt=wanted, raw=True, options=options)
    assert (filled["response"], filled["prompt_eval_count"]) == (raw["response"], raw["prompt_eval_count"])


@pytest.mark.parametrize("thinks", [False, True])
def test_what_filling_in_costs_a_chat_model(
    thinks: bool, ollama: Any, cli: Any, publish: Callable[..., str], repository: Path, tmp_path: Path, llama: Any
) -> None:
    """Ollama takes one of two templates: where it takes ours, what is lost is said; where not, we refuse."""
    folder = shutil.copytree(repository / "tests" / "fixtures" / "arch" / "granite", tmp_path / "coder")
    template = llama.source_dir / "models" / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    more = "{# <think> </think> #}" if thinks else ""  # what Ollama knows an ability by
    (folder / "chat_template.jinja").write_text(template.read_text(encoding="utf-8") + more, encoding="utf-8")
    options = ("--with-template", "--fim")
    said = cli("modelfile", folder, *options, check=False)
    if thinks:
        assert (said.returncode, "would not offer `insert`" in said.stderr) == (3, True)
        return
    assert "tools is lost" in said.stderr
    shown = ollama.post("/api/show", model=publish(folder, *options))
    assert sorted(shown["capabilities"]) == ["completion", "insert"]


def test_filling_in_on_request(ollama: Any, publish: Callable[..., str]) -> None:
    """--no-fim takes the ability away."""
    assert ollama.post("/api/show", model=publish("starcoder2", "--no-fim"))["capabilities"] == ["completion"]
