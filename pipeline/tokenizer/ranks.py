"""Byte-level BPE as ranks of byte strings, without merges: Mistral's tekken.json and tiktoken files of Qwen 1.

Both are read as the tokenizer.json they stand for.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import expect, optional, read_object, read_text, short
from pipeline.tokenizer.pretokenizers import QWEN2
from pipeline.tokenizer.tokenizer_json import TokenizerJson, check_id, parse_document
from pipeline.tokenizer.vocabulary import MAX_TOKENS

# tekken.json of the largest models has 20 MB with 150,000 tokens of 1 MB together.
MAX_FILE_BYTES = 64 << 20
MAX_RANKED_BYTES = 8 << 20
MAX_PIECE_BYTES = 1024

# Special tokens of the versions of tekken.json that do not list their own.
_TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
TEKKEN_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_QWEN_CLASSES = frozenset({"QWenTokenizer"})
QWEN_DEFAULTS = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def read_tekken(path: Path) -> TokenizerJson:
    """Read Mistral's tekken.json.

    Its first default_vocab_size - default_num_special_tokens pieces count; their ids follow the special tokens'.

    Raises:
        FormatError: if it is none.
    """
    document = read_object(path, MAX_FILE_BYTES)
    config = expect(document.get("config"), dict, path, "config")
    n_special = check_id(config.get("default_num_special_tokens"), "config.default_num_special_tokens", path)
    size = check_id(config.get("default_vocab_size"), "config.default_vocab_size", path)
    entries = expect(document.get("vocab"), list, path, "vocab")
    if not 0 < n_special < size or size - n_special > len(entries):
        raise FormatError(
            "config.default_vocab_size",
            where=path,
            expected=f"more than {n_special} special tokens, at most {n_special + len(entries)} in all",
            found=size,
        )
    ranks = _tekken_ranks(entries[: size - n_special], path)
    pattern = expect(config.get("pattern"), str, path, "config.pattern")
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return _tokenizer_json(
        path,
        ranks,
        _tekken_special(document, n_special, path),
        first_rank=n_special,
        normalizer=None,
        pattern=pattern,
        post_processor={"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}]},
        ignore_merges=True,
    )


def read_tiktoken(path: Path, tokenizer_config: dict[str, Any]) -> TokenizerJson:
    """Read a tiktoken file, of which each line has a byte string in base64 and its rank.

    The file does not say how text is cut nor what the special tokens are; the tokenizer class does.

    Raises:
        FormatError: if it is none.
        UnsupportedError: if tokenizer_config.json names a class that is not known here.
    """
    name = optional(tokenizer_config, "tokenizer_class", str, path.with_name("tokenizer_config.json"), "")
    if name not in _QWEN_CLASSES and path.name != "qwen.tiktoken":
        raise UnsupportedError(
            "a tiktoken file does not say how text is cut",
            where=path,
            expected="tokenizer_class " + ", ".join(sorted(_QWEN_CLASSES)),
            found=name,
            hint="transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json",
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path, MAX_FILE_BYTES).splitlines()):
        if line:
            parts = line.split(" ")
            if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 10):
                raise FormatError(f"line {number + 1} has no byte string and rank", where=path, found=short(line))
            _put(ranks, _bytes(parts[0], path), int(parts[1]), path)
    return _tokenizer_json(
        path,
        ranks,
        {len(ranks) + i: text for i, text in enumerate(_QWEN_SPECIAL)},
        first_rank=0,
        normalizer={"type": "NFC"},
        pattern=QWEN2,
        post_processor={"type": "ByteLevel"},
        ignore_merges=False,
    )


def merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Derive the merges of a BPE from the ranks of its pieces: every way to make a piece of two, in order of rank."""
    found: list[tuple[int, int, int, bytes, bytes]] = []
    for piece, rank in ranks.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def byte_alphabet() -> tuple[str, ...]:
    """Give the character that stands for each byte in byte-level BPE (GPT-2's bytes_to_unicode)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return tuple(chr(value) if value in shown else chr(next(hidden)) for value in range(256))


def _tekken_ranks(entries: list[Any], path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for index, entry in enumerate(entries):
        place = f"vocab[{index}]"
        table = expect(entry, dict, path, place)
        text = expect(table.get("token_bytes"), str, path, f"{place}.token_bytes")
        if expect(table.get("rank"), int, path, f"{place}.rank") != index:
            raise FormatError(f"{place} is out of order", where=path, expected=index, found=short(table["rank"]))
        _put(ranks, _bytes(text, path), index, path)
    return ranks


def _tekken_special(document: dict[str, Any], n_special: int, path: Path) -> dict[int, str]:
    names = {i: _TEKKEN_SPECIAL[i] if i < len(_TEKKEN_SPECIAL) else f"<SPECIAL_{i}>" for i in range(n_special)}
    for index, entry in enumerate(optional(document, "special_tokens", list, path, "") or []):
        place = f"special_tokens[{index}]"
        table = expect(entry, dict, path, place)
        rank = check_id(table.get("rank"), f"{place}.rank", path)
        if rank < n_special:
            names[rank] = expect(table.get("token_str"), str, path, f"{place}.token_str")
    return names


def _bytes(text: str, path: Path) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("a piece is not base64", where=path, found=short(text)) from error
    if not 0 < len(data) <= MAX_PIECE_BYTES:
        raise FormatError("size of a piece", where=path, expected=f"1 to {MAX_PIECE_BYTES} bytes", found=len(data))
    return data


def _put(ranks: dict[bytes, int], piece: bytes, rank: int, path: Path) -> None:
    if rank >= MAX_TOKENS or ranks.setdefault(piece, rank) != rank:
        raise FormatError("a piece has two ranks, or one that is too high", where=path, found=f"{short(piece)} {rank}")


def _tokenizer_json(
    path: Path,
    ranks: dict[bytes, int],
    special: dict[int, str],
    *,
    first_rank: int,
    normalizer: Any,
    pattern: str,
    post_processor: Any,
    ignore_merges: bool,
) -> TokenizerJson:
    if sorted(ranks.values()) != list(range(len(ranks))) or sum(map(len, ranks)) > MAX_RANKED_BYTES:
        raise FormatError(
            "ranks",
            where=path,
            expected=f"0 to {len(ranks) - 1}, each once, for at most {MAX_RANKED_BYTES} bytes of pieces",
        )
    letters = byte_alphabet()
    texts = {piece: "".join(letters[value] for value in piece) for piece in ranks}
    vocab = {texts[piece]: first_rank + rank for piece, rank in ranks.items()}
    taken = next((text for text in special.values() if text in vocab), None)
    if taken is not None:
        raise FormatError("a special token is also a piece", where=path, found=short(taken))
    vocab.update({text: token_id for token_id, text in special.items()})
    document = {
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in sorted(special.items())],
        "normalizer": normalizer,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                _BYTES,
            ],
        },
        "post_processor": post_processor,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [[texts[left], texts[right]] for left, right in merges_from_ranks(ranks)],
            "ignore_merges": ignore_merges,
        },
    }
    return parse_document(document, path)
