"""The old two-file form of byte-level BPE, vocab.json and merges.txt, as the tokenizer.json it stands for.

These files do not say how text is cut; the tokenizer class does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.strict_json import MAX_JSON_BYTES, optional, read_object, read_optional, read_text
from pipeline.tokenizer.pretokenizers import QWEN2
from pipeline.tokenizer.tokenizer_json import TokenizerJson, check_id, parse_document, read_decoder

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_QWEN2 = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}
# tokenizer_class without "Fast" -> (normalizer, pre_tokenizer); no class at all is GPT-2, which had no such file.
_CLASSES: dict[str, tuple[Any, Any]] = {
    "": (None, _GPT2),
    "GPT2Tokenizer": (None, _GPT2),
    "CodeGenTokenizer": (None, _GPT2),
    "Qwen2Tokenizer": ({"type": "NFC"}, _QWEN2),
}
_END = "<|endoftext|>"


def read_two_files(folder: Path, tokenizer_config: dict[str, Any]) -> TokenizerJson:
    """Read vocab.json and merges.txt.

    Raises:
        FormatError: if they are not what they claim.
        UnsupportedError: if tokenizer_config.json names a class whose way of cutting text is not known here.
    """
    name = optional(tokenizer_config, "tokenizer_class", str, folder / "tokenizer_config.json", "") or ""
    if name.removesuffix("Fast") not in _CLASSES:
        raise UnsupportedError(
            "vocab.json and merges.txt do not say how this tokenizer cuts text",
            where=folder,
            expected="one of " + ", ".join(filter(None, _CLASSES)),
            found=name,
            hint="transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json",
        )
    normalizer, pre_tokenizer = _CLASSES[name.removesuffix("Fast")]
    vocab = read_object(folder / "vocab.json")
    document = {
        "added_tokens": _added_tokens(folder, tokenizer_config, vocab),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(folder / "merges.txt")},
    }
    return parse_document(document, folder / "vocab.json")


def _merges(path: Path) -> list[str]:
    lines = read_text(path, MAX_JSON_BYTES).split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _added_tokens(folder: Path, tokenizer_config: dict[str, Any], vocab: dict[str, Any]) -> list[dict[str, Any]]:
    """Collect the added tokens, by id: added_tokens.json, then what tokenizer_config.json says of them."""
    added: dict[int, dict[str, Any]] = {}
    if not tokenizer_config and _END in vocab:
        added[check_id(vocab[_END], _END, folder / "vocab.json")] = {"content": _END, "special": True}
    path = folder / "added_tokens.json"
    for text, token_id in read_optional(path).items():
        added[check_id(token_id, text, path)] = {"content": text, "special": True}
    path = folder / "tokenizer_config.json"
    for token in read_decoder(tokenizer_config, path):
        added[token.id] = {"content": token.content, "special": token.special, "normalized": token.normalized}
    return [{**added[token_id], "id": token_id} for token_id in sorted(added)]
