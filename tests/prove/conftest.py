"""What the proof's tests share: small tokenizers, and llama.cpp over a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.prove._stub import write_stub
from pipeline.runtime.llama import LlamaInstall
from pipeline.types import KV

# Whole tokenizers are not in the repository: without a folder of them there is nothing to run, and nothing to skip.
collect_ignore = [] if os.environ.get("GGUF_PIPELINE_REAL_TOKENIZERS") else ["test_real_tokenizers.py"]

TOKENIZERS = Path(__file__).parent.parent / "fixtures" / "tokenizers"


@pytest.fixture(scope="session")
def tokenizer_fixtures() -> Path:
    """A folder with a small tokenizer of each family."""
    return TOKENIZERS


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
