"""What the tokenizer tests share: small checkpoints made on the spot, the texts, llama.cpp over a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from pipeline.runtime.llama import LlamaInstall
from pipeline.types import KV

FIXTURES = Path(__file__).parent.parent / "fixtures"

Ids = Callable[..., list[int]]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of all fixtures."""
    return FIXTURES


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Texts that tell tokenizers apart, by name."""
    entries = json.loads((FIXTURES / "tokenizers" / "texts.json").read_text("utf-8"))
    return {entry["name"]: entry["text"] for entry in entries}


@pytest.fixture
def document() -> dict[str, Any]:
    """A good tokenizer.json of byte-level BPE with five pieces and one added token."""
    return {
        "version": "1.0",
        "added_tokens": [{"id": 5, "content": "<end>", "special": True, "normalized": False}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
            "merges": ["a b", "ab c"],
        },
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint folder: `checkpoint(tokenizer={...}, tokenizer_config={...})` writes these as JSON files."""

    def write(**files: Any) -> Path:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
        return tmp_path

    return write


class Vocabularies:
    """llama.cpp over vocabularies that are written as they are asked for."""

    def __init__(self, library: Any, folder: Path) -> None:
        self._library = library
        self._folder = folder
        self._written: dict[int, tuple[tuple[KV, ...], Path]] = {}

    def path(self, metadata: tuple[KV, ...]) -> Path:
        """Give a GGUF file with *metadata* and no tensor."""
        if id(metadata) not in self._written:
            path = self._folder / f"{len(self._written)}.gguf"
            _write_vocabulary(path, metadata)
            self._written[id(metadata)] = (metadata, path)
        return self._written[id(metadata)][1]

    def ids(self, metadata: tuple[KV, ...], text: str, parse_special: bool, add_special: bool = False) -> list[int]:
        """Cut a text; without BOS and EOS unless *add_special*."""
        found: list[int] = self._library.tokenize(self.path(metadata), text, add_special, parse_special)
        return found

    def text(self, metadata: tuple[KV, ...], ids: list[int]) -> bytes:
        """Write ids back, without special tokens."""
        found: bytes = self._library.detokenize(self.path(metadata), ids)
        return found


@pytest.fixture(scope="session")
def vocabularies(
    llama: LlamaInstall, oracle: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vocabularies]:
    """llama.cpp over vocabularies."""
    library = oracle("libllama").LibLlama(llama.library("llama"))
    yield Vocabularies(library, tmp_path_factory.mktemp("vocabulary"))
    library.close()


@pytest.fixture(scope="session")
def llama_ids(vocabularies: Vocabularies) -> Ids:
    """Cut a text with llama.cpp: `llama_ids(metadata, text, parse_special)` gives the ids, by default without BOS."""
    return vocabularies.ids


@pytest.fixture(scope="session")
def llama_text(vocabularies: Vocabularies) -> Callable[..., bytes]:
    """Write ids back with llama.cpp: `llama_text(metadata, ids)`."""
    return vocabularies.text


def _write_vocabulary(path: Path, metadata: tuple[KV, ...]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for kv in metadata:
        value = list(kv.value) if isinstance(kv.value, tuple) else kv.value
        item = None if kv.item is None else gguf.GGUFValueType(int(kv.item))
        writer.add_key_value(kv.key, value, gguf.GGUFValueType(int(kv.type)), item)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
