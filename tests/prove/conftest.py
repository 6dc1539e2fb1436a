"""What the proof's tests share: small tokenizers, and llama.cpp over a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.prove._stub import write_stub
from pipeline.runtime.llama import LlamaInstall
from pipeline.tokenizer import read_tokenizer
from pipeline.types import KV, boolean

# Whole tokenizers are not in the repository: without a folder of them there is nothing to run, and nothing to skip.
collect_ignore = [] if os.environ.get("GGUF_PIPELINE_REAL_TOKENIZERS") else ["test_real_tokenizers.py"]

TOKENIZERS = Path(__file__).parent.parent / "fixtures" / "tokenizers"


@pytest.fixture(scope="session")
def tokenizer_fixtures() -> Path:
    """A folder with a small tokenizer of each family."""
    return TOKENIZERS


def _with_bos(metadata: Sequence[KV], bos: str) -> tuple[KV, ...]:
    kept = [kv for kv in metadata if "template" not in kv.key and "_bos_" not in kv.key]
    tokens = next(kv for kv in kept if kv.key == "tokenizer.ggml.tokens")
    texts = tuple(tokens.value) if bos in tokens.value else (*tokens.value[:-1], bos)
    kept[kept.index(tokens)] = replace(tokens, value=texts)
    eos = next(kv for kv in kept if kv.key == "tokenizer.ggml.eos_token_id")
    added = replace(eos, key="tokenizer.ggml.bos_token_id", value=texts.index(bos))
    return (*kept, added, boolean("tokenizer.ggml.add_bos_token", True))


@pytest.fixture(scope="session")
def vocabulary_with(demo: Path) -> Callable[[str], tuple[KV, ...]]:
    """Give the demo's vocabulary without its template, with a BOS that is added; a new text takes a token's place."""
    metadata = read_tokenizer(demo, {}).metadata
    return lambda bos: _with_bos(metadata, bos)


@pytest.fixture(scope="session")
def vocabulary(vocabulary_with: Callable[[str], tuple[KV, ...]]) -> tuple[KV, ...]:
    """The same with a BOS that it has."""
    return vocabulary_with("<|endoftext|>")


@pytest.fixture(scope="session")
def engine_tokenize(
    llama: LlamaInstall, oracle: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[dict[str, KV]], Callable[[str, bool], list[int]]]]:
    """Give llama.cpp's (text, whether to parse special tokens) -> ids for the metadata of a GGUF."""
    library = oracle("libllama").LibLlama(llama.library("llama"))
    folder = tmp_path_factory.mktemp("stubs")
    made: list[Path] = []

    def engine(metadata: dict[str, KV]) -> Callable[[str, bool], list[int]]:
        path = folder / f"{len(made)}.gguf"
        made.append(path)
        write_stub(path, [kv for key, kv in metadata.items() if key.startswith("tokenizer.ggml.")])

        def tokenize(text: str, parses_special: bool) -> list[int]:
            ids: list[int] = library.tokenize(path, text, False, parses_special)
            return ids

        return tokenize

    yield engine
    library.close()
