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


@pytest.fixture(scope="session")
def llama_ids(
    llama: LlamaInstall, oracle: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ids]:
    """Cut a text with llama.cpp: `llama_ids(metadata, text, parse_special)` gives the ids, by default without BOS."""
    library = oracle("libllama").LibLlama(llama.library("llama"))
    folder = tmp_path_factory.mktemp("vocabulary")
    written: dict[int, tuple[tuple[KV, ...], Path]] = {}

    def ids(metadata: tuple[KV, ...], text: str, parse_special: bool, add_special: bool = False) -> list[int]:
        if id(metadata) not in written:
            path = folder / f"{len(written)}.gguf"
            _write_vocabulary(path, metadata)
            written[id(metadata)] = (metadata, path)
        found: list[int] = library.tokenize(written[id(metadata)][1], text, add_special, parse_special)
        return found

    yield ids
    library.close()


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
