"""Byte-level BPE: the vocabulary of tokenizer.json as GGUF's tokenizer model "gpt2"."""

from __future__ import annotations

import json

from tokenizers import Tokenizer as Reference

from pipeline.errors import FormatError
from pipeline.tokenizer.pretokenizers import recognise
from pipeline.tokenizer.tokenizer_json import BYTE_LEVEL, TokenizerJson
from pipeline.tokenizer.vocabulary import TokenType, Vocabulary, added_text, added_type, check_texts, unused_name


def byte_level_vocabulary(source: TokenizerJson, vocab_size: int | None) -> Vocabulary:
    """Make the vocabulary of a byte-level BPE.

    Ids without a token, and those up to *vocab_size* (the rows of the embedding), become unused tokens [PADn].
    Follows `TextModel.get_vocab_base` of llama.cpp's converter.

    Raises:
        UnsupportedError: if llama.cpp has no such pre-tokenizer.
        FormatError: if the tokenizer has more tokens than *vocab_size*.
    """
    row, notes = recognise(
        source.normalizer,
        source.pre_tokenizer,
        source.ignore_merges,
        lambda: ignore_merges_is_idle(source),
        source.path,
    )
    texts = {token_id: text for text, token_id in source.vocab.items()}
    types = dict.fromkeys(texts, TokenType.NORMAL)
    for token in source.added:
        texts[token.id], types[token.id] = added_text(token), added_type(token)
    n_tokens = padded_size(texts, vocab_size, source)
    taken = set(texts.values())
    tokens = tuple(texts[i] if i in texts else unused_name(i, taken) for i in range(n_tokens))
    check_texts(tokens, source.path)
    return Vocabulary(
        kind=BYTE_LEVEL,
        model="gpt2",
        pre=row.pre,
        tokens=tokens,
        types=tuple(types.get(i, TokenType.UNUSED) for i in range(n_tokens)),
        merges=tuple(f"{left} {right}" for left, right in source.merges),
        notes=notes + strip_notes(source),
    )


def padded_size(texts: dict[int, str], vocab_size: int | None, source: TokenizerJson) -> int:
    """Give the number of tokens to write: *vocab_size*, which no id may reach.

    Raises:
        FormatError: if one does.
    """
    size = max(texts) + 1
    if vocab_size is not None and size > vocab_size:
        raise FormatError(
            "tokenizer has more tokens than the model has rows for",
            where=source.path,
            expected=f"ids below vocab_size {vocab_size} of config.json",
            found=f"id {size - 1}, {texts[size - 1]!r}",
            hint="config.json and tokenizer.json are not of the same model, or tokens were added without resizing it",
        )
    return size if vocab_size is None else vocab_size


def strip_notes(source: TokenizerJson) -> tuple[str, ...]:
    """Say which added tokens swallow blanks around them, which llama.cpp does not."""
    names = [token.content for token in source.added if token.strips]
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"llama.cpp keeps blanks beside added tokens that strip them: {', '.join(names[:3])}{more}",)


def ignore_merges_is_idle(source: TokenizerJson) -> bool:
    """Tell whether every piece of the vocabulary is also what the merges make of it.

    Then looking words up whole first (ignore_merges) gives the same tokens as merging alone.
    """
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": source.vocab,
        "merges": source.merges,
    }
    reference = Reference.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    added = {token.content for token in source.added}
    pieces = [text for text in source.vocab if text not in added]
    return all(len(encoding.ids) == 1 for encoding in reference.encode_batch(pieces))
