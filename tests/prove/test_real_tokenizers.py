"""Whole tokenizers of real models, which are too large to be kept here: a folder of theirs is named by the environment.

GGUF_PIPELINE_REAL_TOKENIZERS=DIR, where DIR/NAME holds the tokenizer files of one checkpoint.  Any NAME is compared;
of those in the table it is known which limits of the engine show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.prove._limits import engine_of
from pipeline.prove._reference import open_reference
from pipeline.prove._stub import write_stub
from pipeline.prove._template import Template
from pipeline.prove._tokens import Tokens
from pipeline.prove.conversations import abilities
from pipeline.prove.prompts import LlamaServer, compare_prompts
from pipeline.prove.tokenizer import compare
from pipeline.runtime import open_runtime
from pipeline.tokenizer import read_tokenizer

# Read here: the tests themselves run without the settings of the person who starts them.
_FOLDER = os.environ.get("GGUF_PIPELINE_REAL_TOKENIZERS")
_NAMES = sorted(path.name for path in Path(_FOLDER).iterdir() if path.is_dir()) if _FOLDER else ["none"]

# Name -> GGUF's model, the rule, and the limits that show on our texts.
KNOWN: dict[str, tuple[str, str, set[str]]] = {
    "baichuan2": ("llama", "default", set()),
    "deepseek_llm": ("gpt2", "deepseek-llm", set()),
    "deepseek_v3": ("gpt2", "deepseek-v3", set()),
    "falcon": ("gpt2", "falcon", set()),
    "gemma": ("llama", "default", {"promoted_special"}),
    "gemma2": ("llama", "default", {"literal_space_symbol"}),
    "gemma4": ("gemma4", "gemma4", set()),
    "gpt2": ("gpt2", "gpt-2", set()),
    "gpt35turbo": ("gpt2", "dbrx", set()),
    "gpt4o": ("gpt2", "gpt-4o", {"mark_class"}),
    "llama2": ("llama", "default", set()),
    "llama2_spm": ("llama", "default", set()),
    "llama3": ("gpt2", "llama-bpe", set()),
    "llama3_1": ("gpt2", "llama-bpe", set()),
    "minilm": ("bert", "default", {"wordpiece"}),
    "mistral_v1_spm": ("llama", "default", set()),
    "mistral_v3_spm": ("llama", "default", set()),
    "qwen1": ("gpt2", "qwen2", {"nfc", "promoted_special"}),
    "qwen2_5": ("gpt2", "qwen2", {"nfc", "promoted_special"}),
    "qwen36": ("gpt2", "qwen35", {"nfc"}),
    "starcoder": ("gpt2", "starcoder", set()),
    "tekken_240718": ("gpt2", "tekken", {"mark_class"}),
    "xlmr_unigram": ("t5", "default", {"charsmap"}),
    "yi": ("llama", "default", {"promoted_special"}),
}


@pytest.mark.real_tokenizers
@pytest.mark.parametrize("name", _NAMES)
def test_a_real_tokenizer_is_proven(engine_tokenize: Callable[..., Any], name: str) -> None:
    """llama.cpp, given our keys, cuts as the model's own tokenizer, but for the limits that are known to show."""
    folder = Path(_FOLDER or "") / name
    tokenizer = read_tokenizer(folder, {"model_type": "gemma4"} if name == "gemma4" else {})
    metadata = {kv.key: kv for kv in tokenizer.metadata}
    comparison = compare(engine_tokenize(metadata), engine_of(metadata), open_reference(folder))
    assert comparison.unexplained == ()
    if name in KNOWN:
        model = metadata["tokenizer.ggml.model"].value
        assert (model, tokenizer.pre, set(comparison.limits)) == KNOWN[name]


@pytest.mark.real_tokenizers
@pytest.mark.parametrize("name", _NAMES)
def test_real_prompts_are_proven(llama: Any, name: str, tmp_path: Path) -> None:
    """Prompts of real templates with the real tokenizers: the same text and the same tokens, but for known limits."""
    assert llama
    folder = Path(_FOLDER or "") / name
    made = read_tokenizer(folder, {"model_type": "gemma4"} if name == "gemma4" else {})
    if made.chat_template is None:
        return  # most of these packages have none; nothing is claimed of them
    write_stub(tmp_path / "stub.gguf", made.metadata)
    template = Template(made.chat_template, made.tool_template, made.bos or "", made.eos or "")
    with open_runtime(tmp_path / "stub.gguf", n_ctx=64) as session:
        tokens = Tokens(session, {kv.key: kv for kv in made.metadata}, open_reference(folder))
        comparison = compare_prompts(template, LlamaServer(session, abilities(template.source)), tokens)
    assert comparison.unexplained == ()
    assert comparison.untokenized is None
    assert comparison.n_compared >= 13
