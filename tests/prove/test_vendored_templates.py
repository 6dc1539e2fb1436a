"""The chat templates of real models that come with llama.cpp's source: all rendered alike, or by a known limit.

docs/prompts.md has the table; UPDATE_DOCS=1 in the environment of this test writes it again.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.prove._prompt_limits import PROMPT_LIMITS
from pipeline.prove._stub import write_stub
from pipeline.prove._template import Template
from pipeline.prove.conversations import abilities
from pipeline.prove.prompts import LlamaServer, PromptComparison, compare_prompts
from pipeline.runtime import ChatSession, find_llama, open_runtime
from pipeline.types import KV, string


def _templates() -> dict[str, str]:
    path = Path(__file__).parent.parent / "oracle" / "chat_templates.py"
    spec = importlib.util.spec_from_file_location("chat_templates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    install = find_llama()
    if install is None or install.source_dir is None:
        return {}
    return {**module.from_files(install.source_dir), **module.from_tests(install.source_dir)}


_TEMPLATES = _templates()
_PAGE = Path(__file__).parent.parent.parent / "docs" / "prompts.md"
_UPDATE = os.environ.get("UPDATE_DOCS") == "1"

# Templates that render nothing without variables of their own, which Ollama does not hand on.
_UNUSABLE = {"fireworks-ai-llama-3-firefunction-v2", "ai-sage/GigaChat-20B-A3B-instruct"}

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, PromptComparison]]:
    """What came out for each template, gathered by the test that compares it; written as a page at the end if asked."""
    found: dict[str, PromptComparison] = {}
    yield found
    if _UPDATE and len(found) == len(_TEMPLATES):
        _PAGE.write_text(_page(found), encoding="utf-8")


@contextmanager
def _serving(vocabulary: tuple[KV, ...], source: str, folder: Path) -> Iterator[ChatSession]:
    write_stub(folder / "stub.gguf", [*vocabulary, string("tokenizer.chat_template", source)])
    with open_runtime(folder / "stub.gguf", n_ctx=64) as session:
        yield session


def test_there_are_templates(llama: Any) -> None:
    """llama.cpp's source has a hundred; without them nothing below would be tested."""
    assert llama
    assert len(_TEMPLATES) > 100


@pytest.mark.parametrize("name", _TEMPLATES)
def test_a_real_template_is_rendered_alike(
    name: str, vocabulary: tuple[KV, ...], rows: dict[str, PromptComparison], tmp_path: Path
) -> None:
    """llama.cpp renders the conversations as Jinja does, but for limits that are shown; the page says the same."""
    source = _TEMPLATES[name]
    # A template for tools is the second one of a checkpoint; the first knows none of what it says.
    template = Template(source, None, "<|endoftext|>", "<|im_end|>")
    with _serving(vocabulary, source, tmp_path) as session:
        rows[name] = compare_prompts(template, LlamaServer(session, abilities(source)))
    found = rows[name]
    assert found.unexplained == ()
    assert bool(found.n_compared) == (name not in _UNUSABLE)
    if not _UPDATE:
        assert _row(name, found) in _PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_these_templates_and_limits() -> None:
    """docs/prompts.md lists every template and every limit, and no other."""
    if _UPDATE:
        pytest.skip("it is being written")
    lines = _PAGE.read_text(encoding="utf-8").splitlines()
    names = [
        line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ") and line.count(" | ") == 3
    ]
    assert names[1:] == list(_TEMPLATES)
    assert [line for line in lines if line.startswith("- `")] == _limits()


def _row(name: str, found: PromptComparison) -> str:
    equal = found.n_compared - len(found.differences)
    limits = ", ".join(f"{limit} ({n})" for limit, n in sorted(found.limits.items()))
    return f"| {name} | {equal} of {found.n_conversations} | {limits} | {len(found.refused) or ''} |"


def _limits() -> list[str]:
    return [f"- `{limit.name}`: {limit.says}." for limit in PROMPT_LIMITS]


_INTRODUCTION = """\
# Prompts: llama.cpp beside the templates of real models

`publish` compares, on the conversations of `pipeline/prove/conversations.py` that a model can be asked, the prompt that
the engine makes with the one that the checkpoint's own chat template renders, by text and by tokens. The input is what
Ollama hands on: tools as Go's structs write them, no thoughts of earlier turns, `enable_thinking` true where the
template can think and nobody says otherwise. A difference stops the publication (`--force` goes on), unless it is one
of these, each shown by rendering once more without it:
"""

_MIDDLE = """
A prompt that differs in tokens alone is explained by the limits of the tokenizer, or by a BOS that llama.cpp adds where
the template has none.

The templates of real models that llama.cpp's source brings, each on the conversations that the model can be asked.
Refused: by the template itself, such as two questions in a row where roles must alternate, or by a failure in Jinja.
Written by `UPDATE_DOCS=1 pytest tests/prove/test_vendored_templates.py`.

| template | equal | known limits (conversations) | refused |
|---|---|---|---|"""


def _page(rows: dict[str, PromptComparison]) -> str:
    table = [_row(name, rows[name]) for name in _TEMPLATES]
    return "\n".join([_INTRODUCTION, *_limits(), _MIDDLE, *table, ""])
